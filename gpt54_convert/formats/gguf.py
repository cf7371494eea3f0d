"""Reading the GGUF format: keys and tensor table of one file, checked before anything is believed.

The layout (little-endian): `GGUF`, version, number of tensors, number of keys; the keys; name, dimensions,
type and offset of each tensor; padding to the alignment; data.  Source: ggml-org/ggml docs/gguf.md, and the
checks of ggml's gguf.cpp.  The `gguf` package's own reader takes 13.8 s for a vocabulary of 262,000 tokens
and maps the file; this one takes a fraction of a second and reads it in bounded pieces.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.formats._file import ReadFile

MAGIC = b"GGUF"
ALIGNMENT = 32
CHUNK_BYTES = 1 << 20
# Against headers made to exhaust memory; the largest real ones have some 20 MB and 1.5 million elements.
HEADER_LIMIT = 256 << 20
ELEMENT_LIMIT = 4_000_000
TENSOR_LIMIT = 200_000
KEY_LIMIT = 65_536
NAME_LIMIT = 65_535  # bytes of a key or a tensor's name
DIMENSION_LIMIT = 4
ALIGNMENT_LIMIT = 1 << 20

# Value types by number; NumPy's type of the numeric ones.
TYPES = (
    "UINT8",
    "INT8",
    "UINT16",
    "INT16",
    "UINT32",
    "INT32",
    "FLOAT32",
    "BOOL",
    "STRING",
    "ARRAY",
    "UINT64",
    "INT64",
    "FLOAT64",
)
NUMERIC: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT8": np.dtype("i1"),
    "UINT16": np.dtype("<u2"),
    "INT16": np.dtype("<i2"),
    "UINT32": np.dtype("<u4"),
    "INT32": np.dtype("<i4"),
    "FLOAT32": np.dtype("<f4"),
    "BOOL": np.dtype("?"),
    "UINT64": np.dtype("<u8"),
    "INT64": np.dtype("<i8"),
    "FLOAT64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    shape: rows first, as in NumPy (the file counts dimensions the other way round).  type: ggml's name.
    offset: of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis."""
        return self.size_bytes // self.shape[0]


@dataclass(frozen=True)
class GgufFile:
    """What a file declares.

    keys: Python values by name (arrays are lists).  types: GGUF's name of each one's type.
    """

    file: ReadFile
    version: int
    keys: Mapping[str, Any]
    types: Mapping[str, str]
    tensors: Mapping[str, Stored]


@lru_cache
def ggml_types() -> dict[int, tuple[str, int, int]]:
    """ggml's tensor types by number: name, elements of a block, bytes of a block (from the gguf package)."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    return {int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}


def is_gguf(path: Path) -> bool:
    """True where `path` is a file that begins as GGUF does."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


def read(path: Path) -> GgufFile:
    """The header of one file.

    Raises InputError, with the byte, for anything that the format forbids or that the file is too short for;
    UnsupportedError for versions and byte orders of no use here.
    """
    cursor = _Cursor(ReadFile.at(path))
    version, tensor_count, key_count = _begin(cursor)
    keys: dict[str, Any] = {}
    types: dict[str, str] = {}
    for _ in range(key_count):
        at = cursor.offset
        name = cursor.name("key")
        if name in keys:
            raise cursor.error(f"key {name!r} stands there twice", at)
        keys[name], types[name] = _value(cursor, name)
    alignment = _alignment(cursor, keys, types)
    entries = [_entry(cursor) for _ in range(tensor_count)]
    tensors = _place(cursor, entries, alignment)
    return GgufFile(cursor.file, version, keys, types, tensors)


class _Cursor:
    """Walks through the header in pieces of a megabyte; knows how much of the file is left."""

    def __init__(self, file: ReadFile) -> None:
        self.file = file
        self._end = min(file.size_bytes, HEADER_LIMIT)
        self._data, self._start, self._at = b"", 0, 0
        self.elements_left = ELEMENT_LIMIT

    @property
    def offset(self) -> int:
        return self._start + self._at

    @property
    def left(self) -> int:
        """Bytes that the header may still have."""
        return self._end - self.offset

    def error(self, what: str, at: int | None = None) -> InputError:
        return InputError(
            f"{self.file.path}: {what} (byte {self.offset if at is None else at}); the file is damaged or "
            "truncated, get it again"
        )

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise self.error(f"{what} needs {count} bytes, but {self.left} are left for the header")
        if self._at + count > len(self._data):
            self._start, self._at, rest = self.offset, 0, self._data[self._at :]
            wanted = min(max(count, CHUNK_BYTES), self._end - self._start) - len(rest)
            self._data = rest + self.file.bytes(self._start + len(rest), wanted)
        self._at += count
        return self._data[self._at - count : self._at]

    def integer(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def name(self, what: str) -> str:
        length = self.integer(8, f"the length of a {what}'s name")
        if not 0 < length <= NAME_LIMIT:
            raise self.error(f"a {what}'s name has {length} bytes", self.offset - 8)
        return self.text(length, f"a {what}'s name")

    def text(self, length: int, what: str) -> str:
        at = self.offset
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8", at) from None

    def texts(self, count: int, what: str) -> list[str]:
        """`count` strings; the loop of a vocabulary, so it works on the buffer directly."""
        found: list[str] = []
        unpack = struct.Struct("<Q").unpack_from
        while len(found) < count:
            data, at, end = self._data, self._at, len(self._data)
            while at + 8 <= end and len(found) < count:
                stop = at + 8 + unpack(data, at)[0]
                if stop > end:
                    break
                try:
                    found.append(data[at + 8 : stop].decode())
                except UnicodeDecodeError:
                    raise self.error(f"{what} is not UTF-8", self._start + at) from None
                at = stop
            self._at = at
            if len(found) < count:  # the next one crosses the end of the buffer
                found.append(self.text(self.integer(8, what), what))
        return found


def _begin(cursor: _Cursor) -> tuple[int, int, int]:
    path = cursor.file.path
    if cursor.left < 24 or cursor.take(4, "the magic") != MAGIC:
        raise InputError(f"{path}: is no GGUF file (it does not begin with GGUF, or has fewer than 24 bytes)")
    version = cursor.integer(4, "the version")
    if version & 0xFFFF == 0 and version:
        raise UnsupportedError(f"{path}: is a big-endian GGUF file; only little-endian ones can be read")
    if version not in (2, 3):
        raise UnsupportedError(f"{path}: has GGUF version {version}; versions 2 and 3 can be read")
    tensor_count = cursor.integer(8, "the number of tensors")
    key_count = cursor.integer(8, "the number of keys")
    # the least a tensor and a key can take: empty names, one dimension, one byte
    if tensor_count > min(TENSOR_LIMIT, cursor.left // 32):
        raise cursor.error(f"{tensor_count} tensors are declared", 8)
    if key_count > min(KEY_LIMIT, cursor.left // 13):
        raise cursor.error(f"{key_count} keys are declared", 16)
    return version, tensor_count, key_count


def _type(cursor: _Cursor, name: str) -> str:
    number = cursor.integer(4, f"the type of key {name!r}")
    if number >= len(TYPES):
        raise cursor.error(f"key {name!r} has the unknown type {number}", cursor.offset - 4)
    return TYPES[number]


def _value(cursor: _Cursor, name: str) -> tuple[Any, str]:
    """Value and type of the key that comes next; the type of an array is like `ARRAY:STRING`."""
    kind = _type(cursor, name)
    if kind != "ARRAY":
        return _values(cursor, kind, 1, name)[0], kind
    kind = _type(cursor, name)
    if kind == "ARRAY":
        raise cursor.error(f"key {name!r} holds arrays of arrays", cursor.offset - 4)
    at = cursor.offset
    count = cursor.integer(8, f"the length of key {name!r}")
    least = 8 if kind == "STRING" else NUMERIC[kind].itemsize
    cursor.elements_left -= count
    if cursor.elements_left < 0 or count * least > cursor.left:
        raise cursor.error(f"key {name!r} is declared to have {count} elements", at)
    return _values(cursor, kind, count, name), f"ARRAY:{kind}"


def _values(cursor: _Cursor, kind: str, count: int, name: str) -> list[Any]:
    what = f"the value of key {name!r}"
    if kind == "STRING":
        return cursor.texts(count, what)
    at, dtype = cursor.offset, NUMERIC[kind]
    raw = cursor.take(count * dtype.itemsize, what)
    if kind == "BOOL" and raw.translate(None, b"\0\1"):
        raise cursor.error(f"{what} is no truth value", at)
    values: list[Any] = np.frombuffer(raw, dtype).tolist()
    return values


def _alignment(cursor: _Cursor, keys: Mapping[str, Any], types: Mapping[str, str]) -> int:
    alignment = keys.get("general.alignment", ALIGNMENT)
    kind = types.get("general.alignment", "UINT32")
    if kind != "UINT32" or alignment.bit_count() != 1 or alignment > ALIGNMENT_LIMIT:
        raise cursor.error(f"general.alignment is {alignment!r:.40} ({kind}), which is no power of two")
    return int(alignment)


def _entry(cursor: _Cursor) -> Stored:
    """One row of the tensor table; its offset still counts from the start of the data."""
    at = cursor.offset
    name = cursor.name("tensor")
    where = f"tensor {name[:200]!r}"
    dimensions = cursor.integer(4, f"{where}: the number of dimensions")
    if not 1 <= dimensions <= DIMENSION_LIMIT:
        raise cursor.error(f"{where} has {dimensions} dimensions", at)
    shape = tuple(cursor.integer(8, f"{where}: its shape") for _ in range(dimensions))[::-1]
    number = cursor.integer(4, f"{where}: its type")
    if number not in ggml_types():
        raise cursor.error(f"{where} has the unknown type {number}", at)
    kind, block, block_bytes = ggml_types()[number]
    if not all(0 < size < 1 << 48 for size in shape) or math.prod(shape) >= 1 << 60 or shape[-1] % block:
        raise cursor.error(f"{where} of type {kind} cannot have the shape {list(shape)}", at)
    size_bytes = math.prod(shape) // block * block_bytes
    return Stored(name, shape, kind, cursor.integer(8, f"{where}: its offset"), size_bytes)


def _place(cursor: _Cursor, entries: list[Stored], alignment: int) -> dict[str, Stored]:
    """The tensors by name, with offsets from the start of the file, all inside it and none over another."""
    base = -(-cursor.offset // alignment) * alignment
    placed: dict[str, Stored] = {}
    for entry in entries:
        where = f"tensor {entry.name[:200]!r}"
        offset = base + entry.offset
        if entry.name in placed:
            raise cursor.error(f"{where} stands there twice")
        if entry.offset % alignment:
            raise cursor.error(f"{where} at data offset {entry.offset} is not aligned to {alignment}", offset)
        if offset + entry.size_bytes > cursor.file.size_bytes:
            raise cursor.error(f"{where} needs {entry.size_bytes} bytes, beyond the end of the file", offset)
        placed[entry.name] = Stored(entry.name, entry.shape, entry.type, offset, entry.size_bytes)
    for first, second in pairwise(sorted(placed.values(), key=lambda entry: entry.offset)):
        if first.offset + first.size_bytes > second.offset:
            raise cursor.error(
                f"tensors {first.name[:200]!r} and {second.name[:200]!r} overlap", second.offset
            )
    return placed
