"""Several ways on every matrix; the walk keeps the one whose outputs err least on text it did not see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.grids import Grid
from gpt54_convert.quantize.qtensor import QTensor
from gpt54_convert.quantize.solvers import gptq, search
from gpt54_convert.quantize.statistics import Statistics

DESCRIPTION = "gptq with light, usual and heavy damping, imatrix, search and rtn: the best for each matrix"
NEEDS = "moments"
_DAMPINGS = (0.05, 0.01, 0.2)


def candidates(
    weight: NDArray[np.float32], grid: Grid, statistics: Statistics | None = None
) -> dict[str, QTensor]:
    """Codes of `weight` [rows, columns] on `grid` by the name of the way; rtn and imatrix are the walk's own.

    Raises what gptq raises.
    """
    found = {f"gptq, damping {part}": gptq.codes(weight, grid, statistics, part) for part in _DAMPINGS}
    return {**found, "search": search.solve(weight, grid)}


def solve(weight: NDArray[np.float32], grid: Grid, statistics: Statistics | None = None) -> QTensor:
    """`weight` [rows, columns] on `grid`, each row from the best of the candidates by these statistics."""
    found = [*candidates(weight, grid, statistics).values(), gptq.solve(weight, grid, statistics)]
    assert statistics is not None and statistics.moment is not None  # gptq refuses what has none
    return gptq.best_rows(found, weight, statistics.moment)
