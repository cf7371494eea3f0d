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
from gpt54_convert.quantize.solvers._feedback import scaled_of
from gpt54_convert.quantize.solvers._moment import Floats

_STEP = 64
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


def refine(q: QTensor, weight: Floats, moment: NDArray[np.floating], rounds: int) -> QTensor:
    """`q` with tr(E moment Eᵀ) lowered; weight [rows, columns] is what it should be."""
    single = np.ascontiguousarray(moment, np.float32)
    work = _Work(q, weight, single)
    for _ in range(rounds):
        work.scales()
        work.codes()
    work.scales()
    return work.q


class _Work:
    """A tensor on its way: q, and slope [rows, columns], the error times the moment."""

    def __init__(self, q: QTensor, weight: Floats, moment: Floats) -> None:
        self.q, self.moment = q, moment
        self.slope: Floats = np.asarray((q.dequantize() - weight) @ moment, np.float32)
        columns = weight.shape[1]
        self.group = q.grid.group or columns

    def codes(self) -> None:
        """Every code once, some columns at a time; the rest of the slope follows by matrix products."""
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
            self.slope += changes @ self.moment[here]
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
        moved = np.flatnonzero(step)
        values[moved, index] += step[moved]
        self.slope[moved] += (step[moved, None] * direction[moved]) @ self.moment[columns]

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


def _cut(part: NDArray[Any] | None, groups: slice) -> NDArray[Any] | None:
    return None if part is None else part[:, groups]
