"""What every solver demands of its input."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InternalError
from gpt54_convert.quantize.grids import FLOAT, Grid


def check(weight: NDArray[np.float32], grid: Grid) -> None:
    """Refuse what no solver can round.  (That all elements are finite, the kernels see for themselves.)

    Raises InternalError where `weight` is not a contiguous float32 matrix whose rows fit an integer grid.
    """
    if grid.kind == FLOAT:
        raise InternalError(f"{grid.name} holds floats: casting is not a solver's business")
    if weight.ndim != 2 or weight.dtype != np.float32 or not weight.flags.c_contiguous:
        raise InternalError(f"a solver wants a contiguous float32 matrix, not {weight.dtype} {weight.shape}")
    if not grid.fits(weight.shape[1]):
        raise InternalError(
            f"rows of {weight.shape[1]} elements do not divide into {grid.name}'s {grid.block}"
        )
