"""Codes chosen column by column, each column's rounding error handed on to columns that can make up for it.

Arrays are [rows, columns]; a row is independent of the others.  `levels` are the values of codes before
scaling (QTensor.levels), or empty where a value is code · scale + offset.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.kernels.jit import inlined, kernel

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]


class Scaled(NamedTuple):
    """Scale and offset [rows, groups] of every group, the greatest code, and the values of codes."""

    scale: Floats
    offset: Floats
    top: Any
    levels: Floats


@inlined
def _code(value: Any, scale: Any, offset: Any, top: Any, levels: Floats) -> int:
    """The code whose value is nearest."""
    if scale == 0:
        return 0 if levels.size == 0 or offset != 0 else _nearest(np.float32(0), levels)
    if levels.size:
        return _nearest(np.float32((value - offset) / scale), levels)
    code = np.rint((value - offset) / scale)
    return int(min(max(code, np.float32(0)), np.float32(top)))


@inlined
def _nearest(value: Any, levels: Floats) -> int:
    best, found = np.float32(np.inf), 0
    for i in range(levels.size):
        distance = abs(levels[i] - value)
        if distance < best:
            best, found = distance, i
    return found


@inlined
def _value(code: int, scale: Any, offset: Any, levels: Floats) -> Any:
    if levels.size:
        return np.float32(levels[code] * scale)
    return np.float32(np.float32(code) * scale + offset)


@kernel
def feed(weight: Floats, factor: Floats, group: Index, grid: Scaled, codes: Bytes, errors: Floats) -> None:
    """Round the columns of `weight` from the first to the last, changing those behind.

    weight [rows, n]: in, what is wanted; out, what was rounded.  factor [n, n]: upper triangular, the
    Cholesky factor of the inverse moment.  group [n]: each column's group in `grid`.  codes, errors
    [rows, n]: out; an error is (wanted - rounded) / factor[j, j], for the columns that are not among these.
    Frantar et al., GPTQ (arXiv 2210.17323), algorithm 1.
    """
    count = weight.shape[1]
    for row in range(weight.shape[0]):
        wanted = weight[row]
        for j in range(count):
            scale, offset = grid.scale[row, group[j]], grid.offset[row, group[j]]
            code = _code(wanted[j], scale, offset, grid.top, grid.levels)
            error = (wanted[j] - _value(code, scale, offset, grid.levels)) / factor[j, j]
            codes[row, j], errors[row, j] = code, error
            line = factor[j]
            for k in range(j + 1, count):
                wanted[k] -= error * line[k]


@kernel
def descend(slope: Floats, moment: Floats, group: Index, grid: Scaled, codes: Bytes, changes: Floats) -> None:
    """Set each code to the best one while all others stay, from the first column to the last.

    slope [rows, n]: the error (rounded - wanted) times the whole moment, in these columns; kept up to date.
    moment [n, n]: of these columns.  codes: in and out.  changes [rows, n]: out, new value less old.
    """
    count = slope.shape[1]
    for row in range(slope.shape[0]):
        here = slope[row]
        for j in range(count):
            changes[row, j] = 0
            curvature = moment[j, j]
            if curvature <= 0:
                continue
            scale, offset = grid.scale[row, group[j]], grid.offset[row, group[j]]
            old = _value(codes[row, j], scale, offset, grid.levels)
            code = _code(old - here[j] / curvature, scale, offset, grid.top, grid.levels)
            if code == codes[row, j]:
                continue
            change = _value(code, scale, offset, grid.levels) - old
            if change * (2 * here[j] + change * curvature) >= 0:  # no gain
                continue
            codes[row, j], changes[row, j] = code, change
            line = moment[j]
            for k in range(count):
                here[k] += change * line[k]
