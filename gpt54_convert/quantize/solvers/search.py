"""Scale search: the scales, as they are stored, that make the squared error of each group small."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError
from gpt54_convert.quantize.finite import refuse
from gpt54_convert.quantize.grids import SUPER, Grid
from gpt54_convert.quantize.qtensor import QTensor
from gpt54_convert.quantize.solvers._check import check
from gpt54_convert.quantize.statistics import Statistics

DESCRIPTION = "search of the scales for the least squared error; no data needed"
NEEDS = "nothing"


def solve(weight: NDArray[np.float32], grid: Grid, statistics: Statistics | None = None) -> QTensor:
    """`weight` [rows, columns] on `grid`; errors count by their column's mean square, where that is known.

    Raises InputError for an element that is not finite, and for statistics that are not finite or negative.
    """
    check(weight, grid)
    importance = None
    if statistics is not None:
        statistics.check(weight.shape[1])
        importance = statistics.mean_square
    if grid.kind == SUPER:
        from gpt54_convert.quantize.kernels import superblock  # Numba takes half a second to import

        try:
            return superblock.search(weight, grid, importance)
        except InputError:
            refuse(weight)
            raise
    from gpt54_convert.quantize.kernels import flat

    return flat.search(weight, grid, importance)
