"""Quantizers of the superblock grids (`grid.kind == "super"`): plain rounding, and the scale search.

Both are memory-bounded: beside the result they hold a few kilobytes.  They release the GIL, so a caller may
give each thread some rows.  Importances are one non-negative number a column, of any scale.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError, InternalError
from gpt54_convert.quantize.grids import Grid
from gpt54_convert.quantize.kernels import super_offset, super_symmetric
from gpt54_convert.quantize.kernels.super_offset import rtn_offset, search_offset
from gpt54_convert.quantize.kernels.super_symmetric import rtn_symmetric, search_symmetric
from gpt54_convert.quantize.kernels.tiles import SUPERBLOCK, WIDTH, Bytes, Floats, Source
from gpt54_convert.quantize.qtensor import QTensor

T = TypeVar("T", bound=np.generic)
# Columns of no importance still get sensible codes: none counts for less than this part of the mean.
LEAST_IMPORTANCE = 1e-6


class Candidates(NamedTuple):
    """The scales that a search tries, as factors on a first guess (`coarse`) and on its outcome (`fine`).

    For grids with an offset factor and shift alternate, the shift in units of the scale.  Taken from a
    random search over a hundred such sets on Gaussian, Student-t and outlier-ridden weights: twice as many
    lower the error by less than 1 %.
    """

    coarse: Floats
    fine: Floats


def _span(low: float, high: float, count: int) -> Floats:
    return np.linspace(low, high, count, dtype=np.float32)


def _pairs(factors: Floats, shifts: Floats) -> Floats:
    return np.stack(np.meshgrid(factors, shifts, indexing="ij"), axis=-1).reshape(-1)


def _both_signs(factors: Floats, every: int) -> Floats:
    return np.concatenate([factors, -factors[::every]])


_CANDIDATES = {
    "q2_k": Candidates(
        _pairs(_span(0.62, 0.99, 5), _span(-0.6, 0.6, 4)), _pairs(_span(0.82, 1.18, 5), _span(-0.5, 0.5, 3))
    ),
    "q4_k": Candidates(
        _pairs(_span(0.84, 1.09, 5), _span(-0.7, 0.7, 5)), _pairs(_span(0.95, 1.05, 7), _span(0, 0, 1))
    ),
    "q5_k": Candidates(
        _pairs(_span(0.95, 1.09, 13), _span(-0.4, 0.4, 2)), _pairs(_span(0.91, 1.09, 9), _span(-0.3, 0.3, 3))
    ),
    "q3_k": Candidates(_both_signs(_span(0.62, 1.2, 5), 3), _span(0.92, 1.08, 3)),
    "q6_k": Candidates(_span(0.91, 1.06, 6), _span(0.935, 1.065, 13)),
    "iq4_xs": Candidates(_both_signs(_span(0.7, 1.18, 10), 2), _span(0.9, 1.1, 5)),
}
_OFFSET = {
    "q2_k": super_offset.Form(16, 3.0, 15.0),
    "q4_k": super_offset.Form(32, 15.0, 63.0),
    "q5_k": super_offset.Form(32, 31.0, 63.0),
}
_SYMMETRIC = {
    "q3_k": super_symmetric.Form(16, -4.0, 3.0, -32.0, 31.0, 32.0, None),
    "q6_k": super_symmetric.Form(16, -32.0, 31.0, -128.0, 127.0, 0.0, None),
    "iq4_xs": super_symmetric.Form(32, -127.0, 113.0, -32.0, 31.0, 32.0, True),
}


def rtn(weight: NDArray[np.float32], grid: Grid, importance: NDArray[np.float32] | None = None) -> QTensor:
    """Plain rounding of `weight` [rows, columns] float32; `importance` is accepted and not used.

    Raises InputError where a weight is not finite, InternalError where the rows do not fit the grid.
    """
    return _quantize(weight, grid, importance, None)


def search(weight: NDArray[np.float32], grid: Grid, importance: NDArray[np.float32] | None = None) -> QTensor:
    """Codes and scales of `weight` [rows, columns] float32 that make Σ importance · error² small.

    Sought superblock by superblock on what can be stored, rounded scales included; never worse than `rtn`.
    importance: [columns], at least 0, or None for all alike.
    Raises InputError where a weight or an importance is not finite, InternalError as `rtn`.
    """
    return _quantize(weight, grid, importance, _CANDIDATES.get(grid.name))


def _quantize(
    weight: NDArray[np.float32],
    grid: Grid,
    importance: NDArray[np.float32] | None,
    candidates: Candidates | None,
) -> QTensor:
    if grid.name not in _CANDIDATES or weight.ndim != 2 or not grid.fits(weight.shape[1]):
        raise InternalError(f"a weight of shape {weight.shape} cannot be put on the grid {grid.name}")
    rows, columns = weight.shape
    source = Source(np.ascontiguousarray(weight, np.float32).reshape(-1), _importances(importance, columns))
    out = _Arrays.new(weight.size, grid)
    if not _run_tiles(source, grid, candidates, out):
        row = int(np.argmin(np.isfinite(weight).all(axis=1)))
        raise InputError(f"row {row} (counted from 0) holds a weight that is not a finite number")
    offset = grid.name in _OFFSET
    return QTensor(
        grid,
        out.codes.reshape(rows, columns),
        (out.scale.view(np.int8) if grid.name == "q6_k" else out.scale).reshape(rows, columns // grid.group),
        out.offset.reshape(rows, columns // grid.group) if offset else None,
        out.super_scale.astype(np.float16).reshape(rows, columns // SUPERBLOCK),
        out.super_offset.astype(np.float16).reshape(rows, columns // SUPERBLOCK) if offset else None,
    )


class _Arrays(NamedTuple):
    """The flat results of some superblocks; grids without an offset leave the offsets unset."""

    codes: Bytes
    scale: Bytes
    offset: Bytes
    super_scale: Floats
    super_offset: Floats

    @classmethod
    def new(cls, size: int, grid: Grid) -> _Arrays:
        """Arrays for `size` elements."""
        codes, scale, offset = (np.empty(count, np.uint8) for count in (size, *2 * [size // grid.group]))
        return cls(codes, scale, offset, *(np.empty(size // SUPERBLOCK, np.float32) for _ in range(2)))

    def span(self, start: int, stop: int) -> _Arrays:
        """Views of the parts that belong to the elements start … stop."""

        def cut(part: NDArray[T]) -> NDArray[T]:
            size = max(1, self.codes.size)
            return part[start * part.size // size : stop * part.size // size]

        return _Arrays(
            cut(self.codes), cut(self.scale), cut(self.offset), cut(self.super_scale), cut(self.super_offset)
        )


def _run_tiles(source: Source, grid: Grid, candidates: Candidates | None, out: _Arrays) -> bool:
    """Quantize all of `source` into `out`; False where it holds a number that is not finite."""
    size, tile = source.weight.size, WIDTH * grid.group
    whole = size // tile * tile
    finite = _run(Source(source.weight[:whole], source.importance), grid, candidates, out.span(0, whole))
    if whole == size or not finite:
        return finite
    # One superblock is left over: fill its tile up with zeros.
    weight, importance = np.zeros(tile, np.float32), np.ones(tile + SUPERBLOCK, np.float32)
    weight[:SUPERBLOCK] = source.weight[whole:]
    if source.importance.size:
        column = whole % (source.importance.size - SUPERBLOCK)
        importance[:SUPERBLOCK] = source.importance[column : column + SUPERBLOCK]
    rest = _Arrays.new(tile, grid)
    finite = _run(Source(weight, importance), grid, candidates, rest)
    targets: tuple[NDArray[Any], ...] = out.span(whole, size)
    parts: tuple[NDArray[Any], ...] = rest.span(0, SUPERBLOCK)
    for target, part in zip(targets, parts, strict=True):
        target[:] = part
    return finite


def _run(source: Source, grid: Grid, candidates: Candidates | None, out: _Arrays) -> bool:
    """Call the kernel of the grid: the search with `candidates`, plain rounding without."""
    if grid.name in _OFFSET:
        form, arrays = _OFFSET[grid.name], super_offset.Output(*out)
        if candidates is None:
            return rtn_offset(source, form, arrays)
        return search_offset(source, form, candidates.coarse, candidates.fine, arrays)
    shape, parts = _SYMMETRIC[grid.name], super_symmetric.Output(out.codes, out.scale, out.super_scale)
    if candidates is None:
        return rtn_symmetric(source, shape, parts)
    return search_symmetric(source, shape, candidates.coarse, candidates.fine, parts)


def _importances(importance: NDArray[np.float32] | None, columns: int) -> Floats:
    """Importances of mean 1 and at least LEAST_IMPORTANCE; the first superblock's are repeated at the end,
    because a tile may reach over the end of a row.  Empty for None.
    """
    if importance is None:
        return np.empty(0, np.float32)
    values = np.asarray(importance, np.float64)
    if values.shape != (columns,):
        raise InternalError(f"importance has shape {values.shape}, not ({columns},)")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InputError("an importance is negative or not a finite number")
    mean = values.mean()
    values = np.maximum(values / mean, LEAST_IMPORTANCE) if mean > 0 else np.ones(columns)
    return np.concatenate([values, values[:SUPERBLOCK]]).astype(np.float32)
