"""Lazy rewrites of a tensor's rows, each the inverse of another: what architectures do to their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.dtypes import from_float32, is_float
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError


def from_array(name: str, values: NDArray[np.float32]) -> LazyTensor:
    """A tensor that is held in memory (small ones only)."""
    return LazyTensor(name, values.shape, "float32", lambda start, stop: values[start:stop])


def permuted_heads(tensor: LazyTensor, heads: int, inverse: bool = False) -> LazyTensor:
    """Rotary rows reordered between the half-split layout (HF) and the interleaved one (ggml's llama).

    Within each head of d rows, row 2i+j of the result is row j*d/2+i of the source; `inverse` undoes it.
    tensor: [heads * d] or [heads * d, columns].  Codes move with their rows, since groups never span rows.
    Raises InputError where the rows do not divide into heads of even size.
    """
    if heads <= 0 or tensor.row_count % (2 * heads):
        raise InputError(
            f"tensor {tensor.name}: {tensor.row_count} rows do not divide into {heads} heads of even size; "
            "check num_attention_heads and num_key_value_heads in config.json"
        )
    size = tensor.row_count // heads
    order = np.arange(size).reshape(2, size // 2).T.reshape(-1)
    if inverse:
        order = np.argsort(order)

    def gather(read: Callable[[int, int], Any], take: Callable[[Any, NDArray[np.intp]], Any]) -> Any:
        def read_rows(start: int, stop: int) -> Any:
            first, last = start // size, -(-stop // size)
            rows = np.arange(start, stop)
            wanted = (rows // size - first) * size + order[rows % size]
            return take(read(first * size, last * size), wanted)

        return read_rows

    codes = tensor.read_codes
    return replace(
        tensor,
        row_align=size,
        read=gather(tensor.read, lambda data, wanted: data[wanted]),
        read_codes=codes and gather(codes, lambda q, wanted: q.take_rows(wanted)),
    )


def transposed(tensor: LazyTensor) -> LazyTensor:
    """A matrix with its axes exchanged; transposing twice costs nothing.

    Reading rows means reading columns of the source: it is done in strips, so that the source is never
    held whole, and `column_read` asks callers for large chunks.
    """
    source: LazyTensor | None = getattr(tensor.read, "source", None)
    if source is not None:
        return replace(source, name=tensor.name)
    rows, columns = tensor.shape

    def read(start: int, stop: int) -> NDArray[Any]:
        out: NDArray[Any] | None = None
        for low, high in tensor.chunks():
            strip = tensor.read(low, high)[:, start:stop].T
            if out is None:
                out = np.empty((stop - start, rows), strip.dtype)
            out[:, low:high] = strip
        if out is None:
            raise InputError(f"tensor {tensor.name} has no rows")
        return out

    read.source = tensor  # type: ignore[attr-defined]
    return replace(tensor, shape=(columns, rows), read=read, grid=None, read_codes=None, column_read=True)


def shifted(tensor: LazyTensor, by: float) -> LazyTensor:
    """`by` added to every element, in float32 (gemma's norm weights are stored less one)."""
    return replace(
        tensor,
        dtype="float32",
        read=lambda start, stop: (
            tensor.float_rows(start, stop).reshape(stop - start, *tensor.shape[1:]) + np.float32(by)
        ),
        grid=None,
        read_codes=None,
    )


def first_rows(tensor: LazyTensor, count: int) -> LazyTensor:
    """The first `count` rows (an embedding cut to the real vocabulary)."""
    return replace(tensor, shape=(min(count, tensor.row_count), *tensor.shape[1:]))


def cast(tensor: LazyTensor, dtype: str) -> LazyTensor:
    """The same values stored as another float type; tensors of integers stay as they are."""
    if not is_float(tensor.dtype) or (tensor.dtype == dtype and tensor.grid is None):
        return tensor

    def read(start: int, stop: int) -> NDArray[Any]:
        values = from_float32(tensor.float_rows(start, stop), dtype)
        return values.reshape(stop - start, *tensor.shape[1:])

    return replace(tensor, dtype=dtype, read=read, grid=None, read_codes=None)
