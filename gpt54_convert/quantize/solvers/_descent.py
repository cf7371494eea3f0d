"""Codes and scales set one by one to what is best while all others stay, on tr(E H Eᵀ): it only falls.

Scales are set by least squares on the objective and rounded as they are stored; then every code is looked at
again.  Cyclic coordinate descent on quantized weights is QuantEase's idea (arXiv 2309.01885).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.grids import INT, SUPER
from gpt54_convert.quantize.kernels.feedback import descend
from gpt54_convert.quantize.qtensor import QTensor
from gpt54_convert.quantize.solvers._feedback import cut, joined, scaled_of, unit_of
from gpt54_convert.quantize.solvers._moment import Floats

_STEP = 64  # columns whose codes are looked at before the slopes of their stretch follow
_STRETCH = 256  # columns done before all slopes follow, by one matrix product
# Codes of sub-scales and sub-minima: least, greatest.
_SUB_CODES = {
    "q2_k": (0, 15),
    "q3_k": (0, 63),
    "q4_k": (0, 63),
    "q5_k": (0, 63),
    "q6_k": (-128, 127),
    "iq4_xs": (0, 63),
}
_HALF_MAX = 65504.0


def refine(q: QTensor, weight: Floats, moment: Floats, rounds: int) -> QTensor:
    """`q` with tr(E moment Eᵀ) lowered; weight [rows, columns] is what it should be."""
    slope: Floats = np.asarray((q.dequantize() - weight) @ moment, np.float32)
    for _ in range(rounds):
        q = sweep(q, slope, moment)
    return q


def sweep(q: QTensor, slope: Floats, moment: Floats) -> QTensor:
    """Every scale, offset and code once; slope [rows, columns], error times moment, follows in place."""
    parts = []
    for columns in _stretches(q):
        part = _Part(cut(q, columns), slope[:, columns], moment[columns, columns])
        part.scales()
        part.codes()
        _follow(slope, part.changes, moment[columns])
        parts.append(part.q)
    return joined(parts, q.grid)


def _stretches(q: QTensor) -> Iterator[slice]:
    """All columns in turn, some whole groups or superblocks at a time."""
    columns = q.shape[1]
    unit = unit_of(q.grid, columns)
    size = max(unit, _STRETCH - _STRETCH % unit)
    for start in range(0, columns, size):
        yield slice(start, min(start + size, columns))


class _Part:
    """Some columns on their way: q, their slope (error times moment) and what has been added to their values.

    slope, changes [rows, columns]; moment [columns, columns], what these columns have of it.
    """

    def __init__(self, q: QTensor, slope: Floats, moment: Floats) -> None:
        self.q, self.slope = q, slope.copy(order="C")  # the caller's follows once this part is done
        self.moment = np.ascontiguousarray(moment)
        self.changes = np.zeros_like(self.slope)
        self.group = q.grid.group or q.shape[1]

    def codes(self) -> None:
        """Every code once, some columns at a time."""
        scaled = scaled_of(self.q)
        columns = self.slope.shape[1]
        group = np.arange(columns) // self.group
        codes = self.q.codes.copy()
        for start in range(0, columns, _STEP):
            here = slice(start, min(start + _STEP, columns))
            some, found = np.ascontiguousarray(self.slope[:, here]), np.ascontiguousarray(codes[:, here])
            changes = np.empty(some.shape, np.float32)
            square = np.ascontiguousarray(self.moment[here, here])
            descend(some, square, group[here].astype(np.int64), scaled, found, changes)
            codes[:, here] = found
            self._changed(here, changes)
        self.q = replace(self.q, codes=codes)

    def scales(self) -> None:
        """Every scale and offset once."""
        for field, span in self._fields():
            stored = getattr(self.q, field)
            wide = stored.astype(np.float32)
            for index in range(stored.shape[1]):
                columns = slice(index * span, (index + 1) * span)
                self._move(field, index, columns, wide)
            self.q = replace(self.q, **{field: wide.astype(stored.dtype)})

    def _changed(self, columns: slice, changes: Floats) -> None:
        self.changes[:, columns] += changes
        _follow(self.slope, changes, self.moment[columns])

    def _fields(self) -> Iterator[tuple[str, int]]:
        """What can be moved, and how many columns each of its entries serves."""
        if self.q.grid.name == "mxfp4":  # powers of two are not to be nudged
            return
        if self.q.grid.kind == SUPER:
            block = self.q.grid.block
            yield "super_scale", block
            if self.q.super_offset is not None:
                yield "super_offset", block
        yield "scale", self.group
        if self.q.offset is not None and self.q.grid.kind != INT:
            yield "offset", self.group

    def _move(self, field: str, index: int, columns: slice, values: Floats) -> None:
        """Set entry `index` of a field in all rows; values [rows, entries] is changed."""
        direction = self._direction(field, columns)
        square = self.moment[columns, columns]
        reach = np.einsum("ij,ij->i", direction @ square, direction)
        pull = np.einsum("ij,ij->i", direction, self.slope[:, columns])
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(reach > 0, -pull / reach, 0)
        new = self._round(field)(values[:, index] + step)
        step = new - values[:, index]
        step[~(step * (2 * pull + step * reach) < 0)] = 0
        values[:, index] += step
        self._changed(columns, step[:, None] * direction)

    def _direction(self, field: str, columns: slice) -> Floats:
        """What the values in `columns` gain when an entry of the field grows by one, [rows, columns]."""
        q, rows = self.q, slice(None)
        groups = slice(columns.start // self.group, -(-columns.stop // self.group))
        block = columns.start // q.grid.block
        if field in ("scale", "super_scale"):
            levels = replace(q, codes=q.codes[:, columns], offset=_cut(q.offset, groups)).unscaled()
            if q.super_scale is None:
                return levels
            if field == "scale":
                return levels * q.super_scale[:, block, None].astype(np.float32)
            sub = q.scale[rows, groups].astype(np.float32) - (32 if q.grid.name in ("q3_k", "iq4_xs") else 0)
            return levels * np.repeat(sub, self.group, axis=1)
        if field == "super_offset":
            return np.repeat(-_cut(q.offset, groups).astype(np.float32), self.group, axis=1)  # type: ignore
        one = np.ones((len(q.codes), columns.stop - columns.start), np.float32)
        return one if q.super_offset is None else one * -q.super_offset[:, block, None].astype(np.float32)

    def _round(self, field: str) -> Callable[[Floats], Floats]:
        if field in ("scale", "offset") and self.q.grid.kind == SUPER:
            low, high = _SUB_CODES[self.q.grid.name]
            return lambda x: np.clip(np.rint(x), low, high).astype(np.float32)
        return lambda x: np.clip(x, -_HALF_MAX, _HALF_MAX).astype(np.float16).astype(np.float32)


def _follow(slope: Floats, changes: Floats, moment: Floats) -> None:
    """Add changes [rows, some] @ moment [some, columns] to slope [rows, columns]; often few rows change."""
    moved = np.flatnonzero(changes.any(axis=1))
    if len(moved) > len(slope) // 2:
        slope += changes @ moment
    else:
        slope[moved] += changes[moved] @ moment


def _cut(part: NDArray[Any] | None, groups: slice) -> NDArray[Any] | None:
    return None if part is None else part[:, groups]
