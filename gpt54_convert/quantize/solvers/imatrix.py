"""Scale search in which an error counts by how large the inputs of its column are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InternalError
from gpt54_convert.quantize.grids import Grid
from gpt54_convert.quantize.qtensor import QTensor
from gpt54_convert.quantize.solvers import search
from gpt54_convert.quantize.statistics import Statistics

DESCRIPTION = "scale search weighted by the mean square of the activations that each column meets"
NEEDS = "squares"


def solve(weight: NDArray[np.float32], grid: Grid, statistics: Statistics | None = None) -> QTensor:
    """`weight` [rows, columns] on `grid`.

    Raises InputError for an element or a statistic that is not finite, InternalError without statistics.
    """
    if statistics is None:
        raise InternalError("imatrix needs the mean squares of the inputs")
    return search.solve(weight, grid, statistics)
