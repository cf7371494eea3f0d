"""The objective of second-order solvers: tr(E H Eᵀ), E what rounding changes, H the inputs' moment."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError, InternalError
from gpt54_convert.quantize.statistics import Statistics

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Order = NDArray[np.intp]

DAMPING = 0.05  # part of the mean of the diagonal that is added to it; more where that does not suffice
_TRIES = 7
_SMALL = 128
_LARGE = 4096  # columns; beyond these float64 would take gigabytes


def damping(statistics: Statistics, part: float = DAMPING) -> float:
    """What to add to the moment's diagonal: `part` of its mean; columns that were always 0 then stand alone.

    Raises InternalError where no moment was collected, InputError where it is not finite.
    """
    if statistics.moment is None:
        raise InternalError("a second-order solver needs the inputs' second moments")
    mean = float(np.diagonal(statistics.moment).mean(dtype=np.float64))
    if not np.isfinite(mean):
        raise InputError("an activation is not finite, so nothing can be calibrated on it")
    return part * mean if mean > 0 else 1.0


def inverse_factor(moment: Floats, order: Order, extra: float) -> Floats:
    """Upper triangular U with Uᵀ U the inverse of `moment` + extra I, in the given order of columns.

    A moment that is singular in spite of its damping is damped ten times more until it is not.  Beside
    the answer no second matrix is made: of 8192 columns, each takes a quarter of a gigabyte.
    Raises InputError where even that fails (the moment is not one).
    """
    dtype = np.float64 if len(moment) <= _LARGE else np.float32
    for _ in range(_TRIES):
        factor: NDArray[np.floating] = moment[np.ix_(order, order)].astype(dtype, copy=False)
        np.fill_diagonal(factor, np.diagonal(factor) + extra)
        try:
            _root(factor)
            _invert(factor)
            if np.isfinite(np.diagonal(factor)).all() and np.isfinite(factor[0]).all():
                return np.ascontiguousarray(factor, np.float32)
        except np.linalg.LinAlgError:
            pass
        extra *= 10
    raise InputError("the moments of the activations are no moments; collect the statistics again")


def _root(square: NDArray[np.floating]) -> None:
    """Turn a positive definite matrix in place into upper triangular R, R Rᵀ = the matrix, from the end on.

    Raises LinAlgError where it is not positive definite.
    """
    for stop in range(len(square), 0, -_SMALL):
        start = max(0, stop - _SMALL)
        panel = square[:stop, start:stop]
        panel -= square[:stop, stop:] @ square[start:stop, stop:].T
        corner = panel[start:]
        corner[:] = np.linalg.cholesky(corner[::-1, ::-1])[::-1, ::-1]
        panel[:start] = panel[:start] @ np.linalg.inv(corner).T
        panel[start:][np.tril_indices(len(corner), -1)] = 0
        square[stop:, start:stop] = 0


def _invert(upper: NDArray[np.floating]) -> None:
    """Invert an upper triangular matrix in place, by halves."""
    count = len(upper)
    if count <= _SMALL:
        upper[:] = np.triu(np.linalg.inv(upper))
        return
    half = count // 2
    first, corner, last = upper[:half, :half], upper[:half, half:], upper[half:, half:]
    _invert(first)
    _invert(last)
    corner[:] = -(first @ corner) @ last


def row_errors(error: Floats, moment: NDArray[np.floating]) -> Doubles:
    """e H eᵀ of every row e of `error`, [rows]."""
    product = error @ moment.astype(np.float32, copy=False)
    return cast(Doubles, np.einsum("ij,ij->i", product, error, dtype=np.float64))
