"""The safetensors format: 8 bytes of header length, a JSON header, then raw little-endian tensors.

Reading trusts nothing: every number of the header is checked before it is used.  Writing knows the whole
file from the declared tensors alone, so that rows can be put in place in any order and from any thread.

Source: https://huggingface.co/docs/safetensors (format) and the checks that its Rust library makes.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.dtypes import STORAGE, itemsize
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, InternalError, OutputError, UnsupportedError
from gpt54_convert.formats._file import ReadFile

HEADER_LIMIT = 100_000_000  # the format's own limit
# Ours, against headers that are legal in length but built to exhaust memory once they are parsed.  The
# largest models known have fewer than 100,000 tensors in all their shards together.
TENSOR_LIMIT = 200_000
COMMA_LIMIT = 12 * TENSOR_LIMIT
DIMENSION_LIMIT = 16
EMPTY_DIMENSION_LIMIT = 1 << 31

# Ordered as the Rust library orders them, the order in which it writes tensors (widest first).
_CODES = {
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "float8_e4m3": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_DTYPES = {code: name for name, code in _CODES.items()}
_RANK = {name: rank for rank, name in enumerate(_CODES)}
# In the format, but with no storage type here: sub-byte floats, shared exponents, complex numbers.
_KNOWN = {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"}


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file, in the order of their bytes, unread.

    Raises InputError for anything the format forbids, UnsupportedError for its types that have no use here.
    """
    file = ReadFile.at(path)
    if file.size_bytes < 8:
        raise InputError(f"{path}: has {file.size_bytes} bytes, too few for a safetensors file; get it again")
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > HEADER_LIMIT:
        raise InputError(
            f"{path}: byte 0 declares a header of {length} bytes, but the format allows {HEADER_LIMIT}; "
            "this is no safetensors file, or a damaged one"
        )
    if 8 + length > file.size_bytes:
        raise InputError(
            f"{path}: byte 0 declares a header of {length} bytes, but the file has only {file.size_bytes}; "
            "get the file again"
        )
    header = _parse(path, file.bytes(8, length))
    entries = [_entry(path, name, value) for name, value in header.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    _check_layout(path, entries, file.size_bytes - 8 - length)
    return {entry.name: _lazy(file, entry, 8 + length) for entry in entries}


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    if raw.count(b"{") > TENSOR_LIMIT + 2 or raw.count(b",") > COMMA_LIMIT:
        raise InputError(f"{path}: the header declares over {TENSOR_LIMIT} tensors; the file looks hostile")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: the header (from byte 8) is invalid: {reason}; get it again") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header (from byte 8) is not a JSON object; get the file again")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: __metadata__ in the header must map names to strings")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice[:200]!r} stands there twice")
    return result


def _entry(path: Path, name: str, value: Any) -> _Entry:
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where}: the header must give dtype, shape and data_offsets, and nothing else")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if isinstance(code, str) and code in _KNOWN:
        raise UnsupportedError(f"{where}: data type {code} is not supported; convert it to bfloat16 first")
    if not isinstance(code, str) or code not in _DTYPES:
        raise InputError(f"{where}: {str(code)[:40]!r} is no data type of the format")
    if not _naturals(shape) or len(shape) > DIMENSION_LIMIT:
        raise InputError(f"{where}: its shape must be a list of at most {DIMENSION_LIMIT} natural numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise InputError(f"{where}: data_offsets must be two natural numbers")
    size = math.prod(shape)
    if size == 0 and max(shape) > EMPTY_DIMENSION_LIMIT:
        raise InputError(f"{where}: shape {shape} is that of an empty tensor, yet absurdly large")
    begin, end = offsets
    declared = size * itemsize(_DTYPES[code])
    if end - begin != declared:
        raise InputError(
            f"{where}: {code} of shape {shape} takes {declared} bytes, but data_offsets "
            f"[{begin}, {end}] hold {end - begin}; get the file again"
        )
    return _Entry(name, _DTYPES[code], tuple(shape), begin, end)


def _naturals(value: Any) -> bool:
    # bool is an int in Python, and 64 bits are what the format counts in
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_layout(path: Path, entries: list[_Entry], available: int) -> None:
    position = 0
    for entry in entries:
        if entry.begin != position:
            what = "overlaps the one before it" if entry.begin < position else "leaves a hole before it"
            raise InputError(
                f"{path}: tensor {entry.name[:200]!r} at data offset {entry.begin} {what} "
                f"(expected {position}); the format forbids that"
            )
        position = entry.end
    if position != available:
        raise InputError(
            f"{path}: the tensors take {position} bytes, but {available} follow the header; "
            "the file is truncated or has something appended, get it again"
        )


def _lazy(file: ReadFile, entry: _Entry, data_start: int) -> LazyTensor:
    storage, inner = STORAGE[entry.dtype], entry.shape[1:]
    row_bytes = math.prod(inner) * storage.itemsize

    def read_rows(start: int, stop: int) -> NDArray[Any]:
        offset = data_start + entry.begin + start * row_bytes
        return file.array(offset, (stop - start, *inner), storage)

    return LazyTensor(entry.name, entry.shape, entry.dtype, read_rows)


@dataclass(frozen=True)
class Layout:
    """A file that is yet to be written.

    names: the tensors in the order of their bytes.  header: the first bytes of the file.
    offsets: where each tensor starts in the file.  row_bytes: bytes of one row of each.
    """

    names: tuple[str, ...]
    header: bytes
    offsets: Mapping[str, int]
    row_bytes: Mapping[str, int]
    size_bytes: int


def plan(tensors: Iterable[LazyTensor], metadata: Mapping[str, str]) -> Layout:
    """The layout of a file with these tensors: the same bytes as the safetensors library writes.

    Widest types come first, then by name, and the header is padded to 8 bytes: so all tensors are aligned.
    """
    ordered = sorted(tensors, key=lambda tensor: (_RANK[tensor.dtype], tensor.name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    starts, position = {}, 0
    for tensor in ordered:
        if tensor.name in header:
            raise InternalError(f"two tensors are called {tensor.name!r}")
        starts[tensor.name] = position
        end = position + tensor.size_bytes
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > HEADER_LIMIT:
        raise UnsupportedError(f"{len(ordered)} tensors do not fit into one header; use smaller shards")
    base = 8 + len(raw)
    return Layout(
        names=tuple(starts),
        header=len(raw).to_bytes(8, "little") + raw,
        offsets={name: base + start for name, start in starts.items()},
        row_bytes={tensor.name: tensor.columns * itemsize(tensor.dtype) for tensor in ordered},
        size_bytes=base + position,
    )


class Writer:
    """One file being written in place, in any order and from any thread."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Create `path` at its full size.  Raises OutputError where it exists or cannot be written."""
        self.path, self.layout = path, layout
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor: int | None = os.open(path, flags, 0o666)
            os.ftruncate(self._descriptor, layout.size_bytes)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
        self._write(0, memoryview(layout.header))

    def put(self, name: str, start: int, rows: NDArray[Any]) -> None:
        """Write the rows of tensor `name` that begin with row `start`.  Raises OutputError on a full disk."""
        offset = self.layout.offsets[name] + start * self.layout.row_bytes[name]
        self._write(offset, np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Close the file; doing so twice is harmless."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                os.close(descriptor)
            except OSError as error:
                raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def _write(self, offset: int, left: memoryview) -> None:
        if self._descriptor is None:
            raise InternalError(f"{self.path} is closed already")
        while left.nbytes:
            try:
                count = os.pwrite(self._descriptor, left, offset)
            except OSError as error:
                raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from error
            left = left[count:]
            offset += count
