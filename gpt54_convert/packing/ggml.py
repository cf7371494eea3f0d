"""GGUF's quantized types: from codes and scales to the bytes of a tensor's rows, and back, bit for bit.

Layouts: ggml's `ggml-common.h`.  Nothing is computed here, so any bytes survive `pack(unpack(data))`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InternalError, UnsupportedError
from gpt54_convert.packing import planes, subscales
from gpt54_convert.packing.planes import Plane, Word
from gpt54_convert.packing.subscales import Field
from gpt54_convert.quantize.grids import FLAT, GRIDS, SUPER, Grid, grid
from gpt54_convert.quantize.qtensor import QTensor

Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]


class _Layout(NamedTuple):
    """Where a block keeps what: codes, the float16 scale d, the float16 minimum, the codes of sub-scales.

    d and minimum are byte positions, always even; -1 where there is none.
    """

    codes: tuple[Plane | Word, ...]
    d: int = -1
    minimum: int = -1
    sub: Field | None = None


_LAYOUTS = {
    "Q4_0": _Layout((Plane(2, 16, 4),), 0),
    "Q4_1": _Layout((Plane(4, 16, 4),), 0, 2),
    "Q5_0": _Layout((Plane(6, 16, 4), Word(2, 4)), 0),
    "Q5_1": _Layout((Plane(8, 16, 4), Word(4, 4)), 0, 2),
    "Q8_0": _Layout((Plane(2, 32, 8, flip=128),), 0),
    "IQ4_NL": _Layout((Plane(2, 16, 4),), 0),
    "MXFP4": _Layout((Plane(1, 16, 4),), sub=Field(0, 1, "bytes")),
    "Q2_K": _Layout((Plane(16, 32, 2),), 80, 82, Field(0, 16, "nibbles")),
    "Q3_K": _Layout((Plane(32, 32, 2), Plane(0, 32, 1, shift=2)), 108, sub=Field(96, 12, "sixes")),
    "Q4_K": _Layout((Plane(16, 32, 4),), 0, 2, Field(4, 12, "pairs")),
    "Q5_K": _Layout((Plane(48, 32, 4), Plane(16, 32, 1, shift=4)), 0, 2, Field(4, 12, "pairs")),
    "Q6_K": _Layout((Plane(0, 64, 4), Plane(128, 32, 2, shift=4)), 208, sub=Field(192, 16, "bytes")),
    "IQ4_XS": _Layout((Plane(8, 16, 4),), 0, sub=Field(2, 6, "split")),
}
# Integer grids that hold the same codes, scales and values as a GGUF type.
_SAME = {"int4-g32": "q4_0", "int5-g32": "q5_0", "int8-g32": "q8_0"}
_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def ggml_type(grid: Grid) -> str | None:
    """The GGUF type that holds every tensor on `grid` exactly; None where there is none."""
    if grid.kind in (FLAT, SUPER):
        return grid.name.upper()
    return _FLOATS.get(grid.name) or (_SAME[grid.name].upper() if grid.name in _SAME else None)


def pack(q: QTensor, type_name: str | None = None) -> Bytes:
    """Bytes [rows, row_bytes] of `q`, as the GGUF type that holds its grid.

    type_name: the type that the caller expects, checked; may be left out.
    Raises UnsupportedError for a grid that no GGUF type holds and for scales that are not float16.
    """
    own = ggml_type(q.grid)
    layout, stored = _layout(q.grid)
    if type_name is not None and type_name != own:
        raise InternalError(f"a tensor on the grid {q.grid.name} is packed as {own}, not as {type_name}")
    codes = np.ascontiguousarray(q.codes).reshape(-1, stored.block)
    out = np.empty((len(codes), stored.block_bytes), np.uint8)
    planes.pack(codes, layout.codes, out)
    scale, offset = (q.scale, q.offset) if layout.sub is None else (q.super_scale, q.super_offset)
    if layout.d >= 0:
        _put_halves(out, layout.d, scale)
    if layout.minimum >= 0:
        _put_halves(out, layout.minimum, offset)
    if layout.sub is not None:
        sub = [None if part is None else _sub_codes(part, len(codes)) for part in (q.scale, q.offset)]
        assert sub[0] is not None
        out[:, layout.sub.at : layout.sub.at + layout.sub.size] = subscales.pack(
            layout.sub.kind, sub[0], sub[1]
        )
    return out.reshape(len(q.codes), -1)


def unpack(data: Bytes, grid: Grid) -> QTensor:
    """The codes and scales of `data` [rows, row_bytes] of the GGUF type that holds `grid`."""
    layout, stored = _layout(grid)
    rows = len(data)
    if data.ndim != 2 or data.shape[1] % stored.block_bytes:
        raise InternalError(f"data of shape {data.shape} are no rows of {stored.block_bytes}-byte blocks")
    blocks = np.ascontiguousarray(data, np.uint8).reshape(-1, stored.block_bytes)
    codes = planes.unpack(blocks, layout.codes, stored.block).reshape(rows, -1)
    d = _take_halves(blocks, layout.d, rows) if layout.d >= 0 else None
    minimum = _take_halves(blocks, layout.minimum, rows) if layout.minimum >= 0 else None
    if layout.sub is None:
        assert d is not None
        return QTensor(grid, codes, d, minimum)
    field = blocks[:, layout.sub.at : layout.sub.at + layout.sub.size]
    scale, offset = subscales.unpack(layout.sub.kind, field)
    signed = scale.view(np.int8) if stored.name == "q6_k" else scale
    offset = None if offset is None else offset.reshape(rows, -1)
    return QTensor(grid, codes, signed.reshape(rows, -1), offset, d, minimum)


def _layout(grid_: Grid) -> tuple[_Layout, Grid]:
    """Layout of a grid, and the grid by its GGUF name."""
    stored = GRIDS.get(_SAME.get(grid_.name, grid_.name))
    name = ggml_type(grid_)
    if stored is None or name not in _LAYOUTS:
        raise UnsupportedError(
            f"no GGUF type holds the grid {grid_.name}: use {', '.join(sorted(_SAME))} or one of GGUF's own, "
            f"such as {grid('q4_k').name}"
        )
    return _LAYOUTS[name], stored


def _sub_codes(part: NDArray[np.generic], blocks: int) -> Bytes:
    return np.ascontiguousarray(part).view(np.uint8).reshape(blocks, -1)


def _put_halves(out: Bytes, at: int, values: NDArray[np.generic] | None) -> None:
    """Write one float16 a block: blocks of even length and an even `at` make it a whole 16-bit word."""
    if values is None:
        raise InternalError("a scale or an offset that the type stores is missing")
    halves = np.ascontiguousarray(values).astype(np.float16, copy=False)
    if halves.dtype != values.dtype and not np.array_equal(
        halves.astype(values.dtype), values, equal_nan=True
    ):
        raise UnsupportedError("GGUF stores float16 scales, and these are finer: quantize the tensor anew")
    out.view(np.uint16)[:, at // 2] = halves.reshape(-1).view(np.uint16)


def _take_halves(blocks: Bytes, at: int, rows: int) -> Halves:
    halves: Halves = np.ascontiguousarray(blocks.view(np.uint16)[:, at // 2]).view(np.float16)
    return halves.reshape(rows, -1)
