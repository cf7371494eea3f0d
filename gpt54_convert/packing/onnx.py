"""ONNX Runtime's layout of integer weights, as `MatMulNBits` and `GatherBlockQuantized` read it.

Source: onnxruntime, docs/ContribOperators.md, operators of com.microsoft.  Both read the same bytes: element
i of a byte stands at bit bits · i, zero points alike along the groups of a row, and a missing zero point
means 2**(bits-1).  So our codes are stored as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.quantize.grids import INT, INT_GROUPS, Grid
from gpt54_convert.quantize.qtensor import QTensor

BITS = (2, 4, 8)

Bytes = NDArray[np.uint8]
AND = "+"  # between the names of matrices that one initialiser covers


def pack(q: QTensor) -> dict[str, NDArray[Any]]:
    """`q` as the operators read it: rows of the result belong to the rows of `q`, whatever chunk it is.

    codes: uint8 [rows, columns · bits / 8]; scales: float32 [rows, blocks], exactly those of `q`;
    zero_points, for asymmetric grids alone: uint8 [rows, blocks · bits / 8, rounded up].
    A per-channel scale is repeated for every block of its row.
    Raises UnsupportedError for a grid or a row length that the operators do not take.
    """
    columns = q.shape[1]
    blocks = columns // block_size(q.grid, columns)
    repeats = blocks // q.scale.shape[1]
    packed: dict[str, NDArray[Any]] = {
        "codes": _pack(q.codes, q.grid.bits),
        "scales": np.repeat(q.scale.astype(np.float32), repeats, axis=1),
    }
    if q.offset is not None:
        packed["zero_points"] = _pack(np.repeat(q.offset.astype(np.uint8), repeats, axis=1), q.grid.bits)
    return packed


def unpack(
    codes: Bytes, scales: NDArray[np.float32], grid: Grid, columns: int, zero_points: Bytes | None = None
) -> QTensor:
    """The codes of what `pack` made, on the same `grid`; scales come back as float32.

    Raises InputError for arrays that do not fit a weight of `columns` elements a row.
    """
    blocks = columns // block_size(grid, columns)
    wanted = [(columns, codes), (blocks, zero_points)]
    fits = all(part is None or part.shape[1] == byte_count(count, grid.bits) for count, part in wanted)
    if not fits or scales.shape[1] != blocks or (zero_points is None) != grid.symmetric:
        raise InputError(f"the stored parts do not fit a weight of {columns} columns on {grid.name}")
    step = 1 if grid.group else blocks
    offset = None if zero_points is None else _unpack(zero_points, blocks, grid.bits)[:, ::step]
    return QTensor(grid, _unpack(codes, columns, grid.bits), scales[:, ::step], offset)


def block_size(grid: Grid, columns: int) -> int:
    """Elements that share a stored scale in rows of `columns`: the grid's group, or a part of a whole row.

    Raises UnsupportedError for a grid that the operators do not take, and for rows that do not divide.
    """
    if grid.kind != INT or grid.bits not in BITS:
        raise UnsupportedError(
            f"ONNX Runtime computes with integers of 2, 4 or 8 bits, not with {grid.name}: "
            "use int4-g32, int4-g128 or int8-channel"
        )
    choices = (grid.group,) if grid.group else sorted(INT_GROUPS, reverse=True)
    found = next((size for size in choices if columns % size == 0), None)
    if found is None:
        raise UnsupportedError(f"rows of {columns} do not divide by {min(choices)}")
    return found


def byte_count(elements: int, bits: int) -> int:
    """Bytes of one row of `elements` codes."""
    return -(-elements * bits // 8)


def _pack(codes: Bytes, bits: int) -> Bytes:
    """Codes [rows, n] in bytes, the last one of a row filled up with zeros."""
    rows, count = codes.shape
    width, per_byte = byte_count(count, bits), 8 // bits
    if count % per_byte:
        codes = np.pad(codes, ((0, 0), (0, -count % per_byte)))
    codes = np.ascontiguousarray(codes)
    while bits < 8:  # neighbours join: pairs of bytes become bytes of twice as many bits
        pairs = codes.view("<u2")
        codes = (pairs | pairs >> (8 - bits)).astype(np.uint8)
        bits *= 2
    return codes.reshape(rows, width)


def _unpack(data: Bytes, count: int, bits: int) -> Bytes:
    """Codes [rows, count] of `_pack`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = data[:, :, None] >> shifts & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(codes.reshape(len(data), -1)[:, :count])
