"""How much each row and column of a weight holds, read once in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.report import Advance, Report
from gpt54_convert.core.tensor import LazyTensor

Energy = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """Along each axis of a tensor ([rows] and, of a matrix, [columns]): sums of squares, largest squares."""

    sums: tuple[Energy, ...]
    peaks: tuple[Energy, ...]


def profiles(tensors: Mapping[str, LazyTensor], names: Iterable[str], report: Report) -> dict[str, Profile]:
    """The profile of each named tensor; each is read once, a chunk of rows at a time."""
    wanted = list(dict.fromkeys(names))
    total = sum(4 * tensors[name].size for name in wanted)
    with report.progress("measuring weights", total) as advance:
        return {name: _profile(tensors[name], advance) for name in wanted}


def _profile(tensor: LazyTensor, advance: Advance) -> Profile:
    columns = math.prod(tensor.shape[1:])
    row_sums, row_peaks = np.empty(tensor.row_count), np.empty(tensor.row_count)
    column_sums, column_peaks = np.zeros(columns), np.zeros(columns)
    for start, stop in tensor.chunks():
        squares = np.square(tensor.float_rows(start, stop))
        row_sums[start:stop] = squares.sum(1, dtype=np.float64)
        row_peaks[start:stop] = squares.max(1)
        column_sums += squares.sum(0, dtype=np.float64)
        np.maximum(column_peaks, squares.max(0), out=column_peaks)
        advance(4 * squares.size)
    if len(tensor.shape) == 1:
        return Profile((row_sums,), (row_peaks,))
    return Profile((row_sums, column_sums), (row_peaks, column_peaks))
