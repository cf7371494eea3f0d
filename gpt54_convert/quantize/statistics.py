"""What calibration saw of the vectors that enter one matrix; what solvers are given beside its weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError, InternalError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """Averages over `tokens` input vectors x [in] of a matrix [out, in]; some may count more than others.

    mean_square: the mean of x², [in]; llama.cpp's importance matrix.
    greatest: the greatest |x|, [in], or None where it was not collected.
    moment: the mean of x xᵀ, [in, in] (half the Hessian of the output error), or None.
    """

    mean_square: Floats
    tokens: int
    greatest: Floats | None = None
    moment: Floats | None = None

    def check(self, columns: int) -> None:
        """Raise InternalError for other columns than the matrix has, InputError for what is not finite."""
        for part in (self.mean_square, self.moment):
            if part is not None and part.shape[-1] != columns:
                raise InternalError(f"statistics of {part.shape[-1]} columns for a matrix of {columns}")
            if part is not None and not np.isfinite(part).all():
                raise InputError("an activation is not finite, so nothing can be calibrated on it")
        if (self.mean_square < 0).any():
            raise InputError("a mean square of activations is negative; collect the statistics again")
