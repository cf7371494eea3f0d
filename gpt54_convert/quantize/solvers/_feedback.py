"""GPTQ on any grid: scales are searched group by group on what feedback has made of the weights so far."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.grids import SUPER, Grid
from gpt54_convert.quantize.kernels import flat, superblock
from gpt54_convert.quantize.kernels.feedback import Scaled, feed
from gpt54_convert.quantize.qtensor import FIELDS, QTensor
from gpt54_convert.quantize.solvers._moment import Floats, inverse_factor

_STEP = 64  # columns rounded before the others of their stretch are corrected
_STRETCH = 512  # columns rounded before all the rest is corrected, by one matrix product
_NO_LEVELS = np.empty(0, np.float32)


def quantize(weight: Floats, grid: Grid, moment: Floats, extra: float) -> QTensor:
    """Codes of `weight` [rows, columns] that make tr(E (moment + extra I) Eᵀ) small."""
    columns = weight.shape[1]
    unit = unit_of(grid, columns)
    order = unit_order(np.diagonal(moment), unit)
    factor = inverse_factor(moment, order, extra)
    left = weight[:, order]
    fed = _Fed(left, factor)
    parts: list[QTensor] = []
    for start in range(0, columns, unit):
        parts.append(_unit(left, start, order[start : start + unit], fed, grid))
    where = order[::unit] // unit
    return joined([parts[i] for i in np.argsort(where)], grid)


def unit_of(grid: Grid, columns: int) -> int:
    """Columns whose scales are found together."""
    return grid.block if grid.kind == SUPER else grid.group or columns


def unit_order(diagonal: NDArray[np.floating], unit: int) -> NDArray[np.intp]:
    """Columns in the order of rounding: the units that matter most first, and so within each."""
    grouped = np.asarray(diagonal, np.float64).reshape(-1, unit)
    units = np.argsort(-grouped.sum(axis=1), kind="stable")
    within = np.argsort(-grouped, axis=1, kind="stable")
    return (units[:, None] * unit + within[units]).reshape(-1)


def _unit(left: Floats, start: int, columns: NDArray[np.intp], fed: _Fed, grid: Grid) -> QTensor:
    """Round one unit of columns and correct all columns behind it; `left` is in the order of rounding."""
    unit = len(columns)
    natural = np.argsort(columns)  # place in the row -> place in the order
    weight = np.ascontiguousarray(left[:, start : start + unit][:, natural])
    # What a column's error costs once the columns behind it have made up for it as well as they can.
    cost = 1 / np.square(np.diagonal(fed.factor)[start : start + unit][natural])
    q = searched(weight, grid, cost.astype(np.float32))
    scaled = scaled_of(q)
    group = (np.argsort(natural) // (grid.group or unit)).astype(np.int64)
    codes = np.empty((len(left), unit), np.uint8)
    for first in range(start, start + unit, _STEP):
        stop = min(first + _STEP, start + unit)
        inside = slice(first - start, stop - start)
        codes[:, inside] = fed.round(first, stop, group[inside], scaled)
    return replace(q, codes=np.ascontiguousarray(codes[:, natural]))


class _Fed:
    """Rounds columns of `left` [rows, columns] one after the other and corrects those behind them.

    The columns of a stretch are corrected at every step, all others once the stretch is done: the same
    sums, in matrix products that are large enough to be fast.  A unit lies in one stretch, or is the row.
    """

    def __init__(self, left: Floats, factor: Floats) -> None:
        self.left, self.factor = left, factor
        self._errors = np.empty((len(left), min(_STRETCH, left.shape[1])), np.float32)

    def round(self, first: int, stop: int, group: NDArray[np.int64], scaled: Scaled) -> NDArray[np.uint8]:
        """Codes of columns [first, stop), [rows, stop - first]; group: that of each, in `scaled`."""
        begin = first - first % _STRETCH
        end = min(begin + _STRETCH, self.left.shape[1])
        some = np.ascontiguousarray(self.left[:, first:stop])
        found, errors = np.empty(some.shape, np.uint8), np.empty_like(some)
        feed(some, np.ascontiguousarray(self.factor[first:stop, first:stop]), group, scaled, found, errors)
        self._errors[:, first - begin : stop - begin] = errors
        self.left[:, stop:end] -= errors @ self.factor[first:stop, stop:end]
        if stop == end:
            self.left[:, end:] -= self._errors[:, : end - begin] @ self.factor[begin:end, end:]
        return found


def searched(weight: Floats, grid: Grid, importance: Floats) -> QTensor:
    """Scales and codes by weighted search; raises InputError for a weight that is not finite."""
    if grid.kind == SUPER:
        return superblock.search(weight, grid, importance)
    return flat.search(weight, grid, importance)


def scaled_of(q: QTensor) -> Scaled:
    """Scale and offset of each group as the kernels want them."""
    levels = q.levels()
    top = np.float32((1 << q.grid.bits) - 1)
    if levels is not None:
        scale, _ = q.scales()
        return Scaled(scale, np.zeros_like(scale), top, levels)
    scale, offset = q.affine()
    return Scaled(np.ascontiguousarray(scale), np.ascontiguousarray(offset), top, _NO_LEVELS)


def joined(parts: list[QTensor], grid: Grid) -> QTensor:
    """Neighbouring columns of the same rows as one tensor."""

    def join(name: str) -> NDArray[np.generic] | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else np.concatenate(found, axis=1)

    return QTensor(grid, *(join(name) for name in FIELDS))  # type: ignore[arg-type]


def cut(q: QTensor, columns: slice) -> QTensor:
    """Some columns of a tensor, whole units of them."""

    def part(values: NDArray[Any]) -> NDArray[Any]:
        span = q.shape[1] // values.shape[1]
        return np.ascontiguousarray(values[:, columns.start // span : -(-columns.stop // span)])

    return q.each(part)
