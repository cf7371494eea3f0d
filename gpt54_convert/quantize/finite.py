"""Naming the weight that cannot be quantized."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError


def refuse(weight: NDArray[np.float32]) -> None:
    """Raise InputError naming the first element of `weight` [rows, columns] that is not finite, if any."""
    bad = np.argwhere(~np.isfinite(weight))
    if len(bad):
        row, column = bad[0]
        raise InputError(
            f"the weight in row {row}, column {column} is {weight[row, column]}, no finite number"
        )
