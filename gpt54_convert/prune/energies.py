"""How much each row and column of a weight holds, read once in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.report import Advance, Report
from gpt54_convert.core.tensor import LazyTensor

Energy = NDArray[np.float64]


def energies(
    tensors: Mapping[str, LazyTensor], names: Iterable[str], report: Report
) -> dict[str, list[Energy]]:
    """For each named tensor, the sums of squares along each of its axes: [rows] and, of a matrix, [columns].

    Each tensor is read once, a chunk of rows at a time.
    """
    wanted = list(dict.fromkeys(names))
    total = sum(4 * tensors[name].size for name in wanted)
    with report.progress("measuring weights", total) as advance:
        return {name: _of(tensors[name], advance) for name in wanted}


def _of(tensor: LazyTensor, advance: Advance) -> list[Energy]:
    rows = np.empty(tensor.row_count)
    columns = np.zeros(math.prod(tensor.shape[1:]))
    for start, stop in tensor.chunks():
        values = tensor.float_rows(start, stop)
        squares = np.square(values, dtype=np.float32)
        rows[start:stop] = squares.sum(1, dtype=np.float64)
        columns += squares.sum(0, dtype=np.float64)
        advance(4 * values.size)
    return [rows, columns] if len(tensor.shape) > 1 else [rows]
