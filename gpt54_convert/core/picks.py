"""Lazy selections of a tensor's rows and columns, and lazy products with a factor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.dtypes import STORAGE, from_float32
from gpt54_convert.core.tensor import CHUNK_BYTES, LazyTensor
from gpt54_convert.core.views import transposed

Indices = NDArray[np.intp]
_GAP_ROWS = 8  # unwanted rows that cost less to read than another call


def picked(tensor: LazyTensor, axis: int, wanted: Indices) -> LazyTensor:
    """The tensor with only the entries `wanted` of an axis, in that order; all of them in order cost nothing.

    Codes do not survive, since columns cut groups: values on a grid become dequantized float32.
    """
    if np.array_equal(wanted, np.arange(tensor.shape[axis])):
        return tensor
    source: LazyTensor | None = getattr(tensor.read, "source", None)
    if source is not None:  # a transposed view: rows of it are columns of its file
        return transposed(picked(source, 1 - axis, wanted)).renamed(tensor.name)
    shape = list(tensor.shape)
    shape[axis] = len(wanted)
    read = _read_rows(tensor, wanted) if axis == 0 else _read_columns(tensor, wanted)
    return replace(
        tensor,
        shape=tuple(shape),
        read=read,
        grid=None,
        read_codes=None,
        storage="",
        storage_bytes=None,
        row_align=1 if axis == 0 else tensor.row_align,
    )


def _read_rows(tensor: LazyTensor, wanted: Indices) -> Any:
    def read(start: int, stop: int) -> NDArray[Any]:
        rows = wanted[start:stop]
        out = np.empty((len(rows), *tensor.shape[1:]), STORAGE[tensor.dtype])
        for low, high in _runs(rows, max(1, CHUNK_BYTES // max(1, 4 * tensor.columns))):
            first = rows[low]
            out[low:high] = tensor.rows(int(first), int(rows[high - 1]) + 1)[rows[low:high] - first]
        return out

    return read


def _runs(rows: Indices, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of positions whose rows ascend with small gaps and span at most `limit` rows (or one row)."""
    low = 0
    for at in range(1, len(rows) + 1):
        if at < len(rows) and 0 < rows[at] - rows[at - 1] <= _GAP_ROWS and rows[at] - rows[low] < limit:
            continue
        yield low, at
        low = at


def _read_columns(tensor: LazyTensor, wanted: Indices) -> Any:
    step = max(1, CHUNK_BYTES // max(1, 4 * tensor.columns))
    step = max(tensor.row_align, step - step % tensor.row_align)

    def read(start: int, stop: int) -> NDArray[Any]:
        if tensor.column_read:
            return np.ascontiguousarray(tensor.rows(start, stop)[:, wanted])
        out = np.empty((stop - start, len(wanted)), STORAGE[tensor.dtype])
        for low in range(start, stop, step):  # the source's rows may be many times longer
            high = min(low + step, stop)
            out[low - start : high - start] = tensor.rows(low, high)[:, wanted]
        return out

    return read


def scaled(tensor: LazyTensor, factor: float, shift: float = 0.0) -> LazyTensor:
    """(tensor + shift) × factor − shift, in the tensor's own float type; a factor of 1 costs nothing.

    shift: 1 for a gain that is stored less one.
    """
    if factor == 1.0:
        return tensor

    def read(start: int, stop: int) -> NDArray[Any]:
        values = (tensor.float_rows(start, stop) + np.float32(shift)) * np.float32(factor) - np.float32(shift)
        return from_float32(values, tensor.dtype).reshape(stop - start, *tensor.shape[1:])

    return replace(tensor, read=read, grid=None, read_codes=None, storage="", storage_bytes=None)
