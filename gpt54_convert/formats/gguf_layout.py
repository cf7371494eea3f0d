"""Writing the GGUF format: the exact bytes of a header, and where every tensor's rows go behind it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InternalError, UnsupportedError
from gpt54_convert.formats.gguf import ALIGNMENT, MAGIC, NUMERIC, TYPES, ggml_types
from gpt54_convert.formats.safetensors import Layout

VERSION = 3
NAME_LIMIT = 63  # ggml keeps a tensor's name in 64 bytes, the last of which is zero

Key = tuple[str, str, Any]
"""Name, type (`UINT32`, `STRING`, `ARRAY:FLOAT32`…), value."""


def plan(keys: Iterable[Key], tensors: Iterable[tuple[LazyTensor, str]]) -> Layout:
    """The layout of a file with these keys and these tensors (each with ggml's name of its type).

    The tensors stand in the order given, each at a multiple of 32 bytes; what lies between is zero.
    Raises UnsupportedError for a name that ggml cannot keep.
    """
    table, starts, row_bytes, position = [], {}, {}, 0
    for tensor, kind in tensors:
        if tensor.name in starts:
            raise InternalError(f"two tensors are called {tensor.name!r}")
        size = size_bytes(tensor, kind)
        starts[tensor.name] = position
        row_bytes[tensor.name] = size // tensor.row_count
        table.append(_entry(tensor, _numbers()[kind][0], position))
        position += -(-size // ALIGNMENT) * ALIGNMENT
    entries = [_string(name) + _typed(kind, value) for name, kind, value in keys]
    header = MAGIC + struct.pack("<IQQ", VERSION, len(table), len(entries))
    header += b"".join(entries) + b"".join(table)
    header += bytes(-len(header) % ALIGNMENT)
    return Layout(
        names=tuple(starts),
        header=header,
        offsets={name: len(header) + start for name, start in starts.items()},
        row_bytes=row_bytes,
        size_bytes=len(header) + position,
    )


def size_bytes(tensor: LazyTensor, kind: str) -> int:
    """Bytes of a tensor stored as ggml's type `kind`."""
    _, block, block_bytes = _numbers()[kind]
    if tensor.shape[-1] % block:
        raise InternalError(f"tensor {tensor.name}: rows of {tensor.shape[-1]} do not divide into {kind}")
    return tensor.size // block * block_bytes


@lru_cache
def _numbers() -> dict[str, tuple[int, int, int]]:
    return {name: (number, block, size) for number, (name, block, size) in ggml_types().items()}


def _entry(tensor: LazyTensor, number: int, position: int) -> bytes:
    if len(tensor.name.encode()) > NAME_LIMIT:
        raise UnsupportedError(
            f"tensor {tensor.name}: its name has more than the {NAME_LIMIT} bytes that ggml can keep"
        )
    dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
    return _string(tensor.name) + dimensions + struct.pack("<IQ", number, position)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(kind: str, value: Any) -> bytes:
    """A value with its type before it."""
    number = TYPES.index(kind.removeprefix("ARRAY:"))
    if not kind.startswith("ARRAY:"):
        return struct.pack("<I", number) + _packed(TYPES[number], [value])
    head = struct.pack("<IIQ", TYPES.index("ARRAY"), number, len(value))
    return head + _packed(TYPES[number], value)


def _packed(kind: str, values: Any) -> bytes:
    if kind == "STRING":
        return b"".join(map(_string, values))
    # NumPy refuses what does not fit into an integer type, so nothing wraps around silently.
    return np.array(values, NUMERIC[kind]).tobytes()
