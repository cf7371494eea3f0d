"""Quantizers of the grids with one level of scales (kinds `int` and `flat`): plain rounding, scale search.

Beside the result they hold a few bytes a group.  They release the GIL, so a caller may give each thread some
rows.  Plain rounding's conventions: a symmetric group's element of greatest size stands on the lowest level,
as in ggml's q4_0 (8 bits: on ±127, as in q8_0); an asymmetric group spans from its smallest to its largest
element.  Codes are chosen on the scale as it is stored, rounded to float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError, InternalError
from gpt54_convert.quantize.finite import refuse
from gpt54_convert.quantize.grids import INT, Grid
from gpt54_convert.quantize.kernels import affine, ladders, mxfp4, signed
from gpt54_convert.quantize.kernels.groups import Coded, Groups, as_float16, not_finite, scratch
from gpt54_convert.quantize.qtensor import QTensor

_CURVED = "iq4_nl"
_MXFP4 = "mxfp4"
_MXFP4_TRIES = 2


def rtn(weight: NDArray[np.float32], grid: Grid, importance: NDArray[np.float32] | None = None) -> QTensor:
    """Plain rounding of `weight` [rows, columns] float32; `importance` is accepted and not used.

    Raises InputError where a weight is not finite.
    """
    groups, out = _prepare(weight, grid, None)
    if grid.name == _MXFP4:
        mxfp4.round_mxfp4(groups, mxfp4.powers_of_two(), 0, out)
    elif grid.symmetric:
        factor = ladders.signed(grid, weighted=False).factors[0]
        signed.rtn_signed(groups, factor, _signed_form(grid), out)
    else:
        affine.rtn_affine(groups, _affine_form(grid), out)
    if not_finite(groups):
        refuse(weight)
    return _result(out, grid, weight.shape)


def search(weight: NDArray[np.float32], grid: Grid, importance: NDArray[np.float32] | None = None) -> QTensor:
    """Codes and scales of `weight` [rows, columns] float32 that make Σ importance · error² small.

    A group's error is measured on what is stored, float16 scales included; it never exceeds that of `rtn`.
    importance: [columns] at least 0, of any scale, or None for all alike (as in a group where all are 0).
    Raises InputError where a weight is not finite, and where an importance is negative or not finite.
    """
    groups, out = _prepare(weight, grid, importance)
    weighted = importance is not None
    if grid.name == _MXFP4:
        mxfp4.round_mxfp4(groups, mxfp4.powers_of_two(), _MXFP4_TRIES, out)
    elif grid.symmetric:
        ladder = ladders.signed(grid, weighted)
        signed.search_signed(groups, ladder.factors, ladder.refits, _signed_form(grid), out)
    else:
        ladder = ladders.affine(grid, weighted)
        affine.search_affine(groups, ladder.factors, ladder.refits, _affine_form(grid), out)
    if not_finite(groups):
        refuse(weight)
    return _result(out, grid, weight.shape)


def _signed_form(grid: Grid) -> signed.Form:
    if grid.name == _CURVED:
        return signed.Form(-127.0, 113.0, 0, True)
    middle = 1 << (grid.bits - 1)
    return signed.Form(-float(middle), float(middle - 1), int(grid.bits == 8), None)


def _affine_form(grid: Grid) -> affine.Form:
    return affine.Form(float((1 << grid.bits) - 1), int(grid.kind == INT))


def _prepare(
    weight: NDArray[np.float32], grid: Grid, importance: NDArray[np.float32] | None
) -> tuple[Groups, Coded]:
    if weight.ndim != 2 or not grid.fits(weight.shape[1]):
        raise InternalError(f"a weight of shape {weight.shape} cannot be put on the grid {grid.name}")
    columns = weight.shape[1]
    x = np.ascontiguousarray(weight, np.float32).reshape(-1, grid.group or columns)
    groups = Groups(x, x.reshape(-1), _importances(importance, columns, x.shape[1]), scratch())
    scale, offset = np.empty(len(x), np.float32), np.empty(0 if grid.symmetric else len(x), np.float32)
    return groups, Coded(np.empty(x.size, np.uint8), scale, offset)


def _importances(importance: NDArray[np.float32] | None, columns: int, group: int) -> NDArray[np.float32]:
    """Importance by group of columns, [groups of a row, group], of mean 1 in each; a row of ones for None."""
    if importance is None:
        return np.ones((1, group), np.float32)
    if importance.shape != (columns,):
        raise InternalError(f"importance has shape {importance.shape}, not ({columns},)")
    grouped = np.asarray(importance, np.float64).reshape(-1, group)
    usable = np.isfinite(importance) & (importance >= 0)
    if not usable.all():
        column = int(usable.argmin())
        raise InputError(f"the importance of column {column} is {importance[column]}, no finite number ≥ 0")
    mean = grouped.mean(axis=1, keepdims=True)
    return np.where(mean > 0, grouped / np.where(mean > 0, mean, 1), 1).astype(np.float32)


def _result(out: Coded, grid: Grid, shape: tuple[int, ...]) -> QTensor:
    groups = shape[0], shape[1] // (grid.group or shape[1])
    scale: Any = out.scale.astype(np.uint8) if grid.name == _MXFP4 else as_float16(out.scale)
    scale = scale.reshape(groups)
    if grid.symmetric:
        return QTensor(grid, out.codes.reshape(shape), scale)
    offset: Any = out.offset.astype(np.uint8) if grid.kind == INT else as_float16(out.offset)
    return QTensor(grid, out.codes.reshape(shape), scale, offset.reshape(groups))
