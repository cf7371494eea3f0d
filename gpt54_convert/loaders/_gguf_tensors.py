"""The tensors of GGUF files as lazy tensors, and what GGUF does to weights undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.archs import Match
from gpt54_convert.core import views
from gpt54_convert.core.dtypes import STORAGE
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.formats._file import ReadFile
from gpt54_convert.formats.gguf import GgufFile, Stored
from gpt54_convert.packing import ggml as packing
from gpt54_convert.quantize.grids import GRIDS

_PLAIN = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}


def merged(parts: Iterable[GgufFile]) -> dict[str, LazyTensor]:
    """The tensors of all parts under their GGUF names.

    Raises InputError for a name in two parts, UnsupportedError for a type that cannot be dequantized.
    """
    found: dict[str, LazyTensor] = {}
    for part in parts:
        for name, stored in part.tensors.items():
            if name in found:
                raise InputError(
                    f"{part.file.path}: tensor {name} stands in an earlier shard too; get them again"
                )
            found[name] = lazy(part.file, stored)
    return found


def lazy(file: ReadFile, stored: Stored) -> LazyTensor:
    """One tensor: as it is where its type is a plain one, else codes and their float32 values."""
    if stored.type in _PLAIN:
        return _plain(file, stored, _PLAIN[stored.type])
    if len(stored.shape) < 2:
        raise UnsupportedError(f"{file.path}: tensor {stored.name} is a vector of type {stored.type}")
    raw = _raw_rows(file, stored)
    grid = GRIDS.get(stored.type.lower())
    return LazyTensor(
        stored.name,
        stored.shape,
        "float32",
        _dequantizer(file, stored, raw),
        grid=grid.name if grid else None,
        read_codes=(lambda start, stop: packing.unpack(raw(start, stop), grid)) if grid else None,
        storage=stored.type.lower(),
        storage_bytes=stored.size_bytes,
    )


def _plain(file: ReadFile, stored: Stored, dtype: str) -> LazyTensor:
    def read(start: int, stop: int) -> NDArray[Any]:
        shape = (stop - start, *stored.shape[1:])
        return file.array(stored.offset + start * stored.row_bytes, shape, STORAGE[dtype])

    return LazyTensor(stored.name, stored.shape, dtype, read)


def _raw_rows(file: ReadFile, stored: Stored) -> Callable[[int, int], NDArray[np.uint8]]:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        shape = (stop - start, stored.row_bytes)
        return file.array(stored.offset + start * stored.row_bytes, shape, np.dtype("u1"))

    return read


def _dequantizer(
    file: ReadFile, stored: Stored, raw: Callable[[int, int], NDArray[np.uint8]]
) -> Callable[[int, int], NDArray[Any]]:
    """Reads rows through the gguf package, which knows every type that llama.cpp still writes."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import _type_traits, dequantize

    kind = GGMLQuantizationType[stored.type]
    if kind not in _type_traits:
        raise UnsupportedError(
            f"{file.path}: tensor {stored.name} is of type {stored.type}, which nothing here can dequantize"
        )

    def read(start: int, stop: int) -> NDArray[Any]:
        values = cast(NDArray[np.float32], dequantize(raw(start, stop), kind))
        return values.reshape(stop - start, *stored.shape[1:])

    return read


def undone(tensor: LazyTensor, match: Match, sizes: Mapping[str, int], own: Any) -> LazyTensor:
    """The tensor as a model folder would hold it: rows in order, norms less one, named and oriented so.

    own: its values before GGUF's scaling, where the file keeps them (see `Architecture.gguf_scales`).
    """
    weight = match.weight
    if own is not None and isinstance(own, list) and tensor.shape == (len(own),):
        tensor = views.from_array(match.hf, np.asarray(own, np.float32))
    if weight.rope:
        tensor = views.permuted_heads(tensor, sizes[weight.rope], inverse=True)
    if weight.plus_one:
        tensor = views.shifted(tensor, -1.0)
    if match.is_turned and len(tensor.shape) == 2:
        tensor = views.transposed(tensor)  # undone again where shapes are checked, at no cost
    return replace(tensor, name=match.hf)
