"""How far codes are from the weights they stand for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gpt54_convert.quantize.qtensor import QTensor

_LANES = 16  # partial sums per group: a fixed order that compilers can still vectorise


@njit(cache=True, nogil=True)
def _squares(weight, codes, levels, scale, offset, group):  # type: ignore[no-untyped-def]
    rows, columns = weight.shape
    error, energy = np.zeros(_LANES), np.zeros(_LANES)
    for row in range(rows):
        for part in range(columns // group):
            s, o = scale[row, part], offset[row, part]
            start = part * group
            whole = group - group % _LANES
            for at in range(start, start + whole, _LANES):
                for lane in range(_LANES):
                    w = weight[row, at + lane]
                    d = np.float64(w - (levels[codes[row, at + lane]] * s + o))
                    error[lane] += d * d
                    energy[lane] += np.float64(w) * np.float64(w)
            for at in range(start + whole, start + group):
                d = np.float64(weight[row, at] - (levels[codes[row, at]] * s + o))
                error[0] += d * d
                energy[0] += np.float64(weight[row, at]) ** 2
    return error.sum(), energy.sum()


def squares(weight: NDArray[np.float32], q: QTensor) -> tuple[float, float]:
    """Sum of squared differences and of squared weights.  weight [rows, columns]."""
    levels, scale, offset = q.affine()
    group = q.grid.group or weight.shape[1]
    error, energy = _squares(weight, q.codes, levels, scale, offset, group)
    return float(error), float(energy)


@dataclass
class ErrorTally:
    """Squared errors of one tensor, collected chunk by chunk from several threads.

    Chunks are kept apart by their first row, so that the total does not depend on their order and a chunk
    that is computed twice counts once.
    """

    _chunks: dict[int, tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, start: int, weight: NDArray[np.float32], q: QTensor) -> None:
        found = squares(weight, q)
        with self._lock:
            self._chunks[start] = found

    @property
    def relative(self) -> float:
        """Root of the squared error over the squared weights; 0 for a tensor of zeros."""
        error = sum(self._chunks[start][0] for start in sorted(self._chunks))
        energy = sum(self._chunks[start][1] for start in sorted(self._chunks))
        return float(np.sqrt(error / energy)) if energy else 0.0
