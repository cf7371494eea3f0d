"""How far codes are from the weights they stand for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.kernels.jit import kernel
from gpt54_convert.quantize.qtensor import QTensor


@kernel
def _fold(values: NDArray[np.float32], count: int) -> float:
    """The sum of `values[:count]` by halves: few float32 additions in a row, in an order that vectorises."""
    while count > 1:
        half = count // 2
        if count % 2:
            values[0] += values[count - 1]
        for i in range(half):
            values[i] += values[half + i]
        count = half
    return float(values[0])


@kernel
def _linear(
    weight: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    group: int,
) -> tuple[float, float]:
    """Sums for values codes * scale + offset: a row at a time in float32, rows together in float64."""
    rows, columns = weight.shape
    squared, power = np.empty(columns, np.float32), np.empty(columns, np.float32)
    error, energy = 0.0, 0.0
    for row in range(rows):
        for part in range(columns // group):
            here = slice(part * group, (part + 1) * group)
            s, o = scale[row, part], offset[row, part]
            w, c, out = weight[row, here], codes[row, here], squared[here]
            for j in range(group):
                d = w[j] - (np.float32(c[j]) * s + o)
                out[j] = d * d
        for j in range(columns):
            power[j] = weight[row, j] * weight[row, j]
        error += _fold(squared, columns)
        energy += _fold(power, columns)
    return error, energy


def squares(weight: NDArray[np.float32], q: QTensor) -> tuple[float, float]:
    """Sum of squared differences and of squared weights.  weight [rows, columns]."""
    if q.levels() is not None:  # non-linear levels: rare, so NumPy will do
        difference = weight - q.dequantize()
        flat = weight.reshape(-1)
        return float(np.vdot(difference, difference)), float(np.vdot(flat, flat))
    scale, offset = q.affine()
    return _linear(weight, q.codes, scale, offset, q.grid.group or weight.shape[1])


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
