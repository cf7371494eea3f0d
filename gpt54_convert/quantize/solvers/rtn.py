"""Round to nearest: each group's scale from its extremes, each element to the nearest level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError
from gpt54_convert.quantize.finite import refuse
from gpt54_convert.quantize.grids import SUPER, Grid
from gpt54_convert.quantize.qtensor import QTensor
from gpt54_convert.quantize.solvers._check import check
from gpt54_convert.quantize.statistics import Statistics

DESCRIPTION = "plain rounding to the nearest level: fastest, no data needed"
NEEDS = "nothing"


def solve(weight: NDArray[np.float32], grid: Grid, statistics: Statistics | None = None) -> QTensor:
    """`weight` [rows, columns] on `grid`; `statistics` are not used.

    Raises InputError for an element that is not finite.
    """
    check(weight, grid)
    if grid.kind == SUPER:
        from gpt54_convert.quantize.kernels import superblock  # Numba takes half a second to import

        try:
            return superblock.rtn(weight, grid)
        except InputError:
            refuse(weight)
            raise
    from gpt54_convert.quantize.kernels import flat

    return flat.rtn(weight, grid)
