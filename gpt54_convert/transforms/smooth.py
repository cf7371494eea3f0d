"""SmoothQuant: part of the activations' range moves into the weights, so that both fit 8 bits.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models" (ICML 2023).  Channel j of what enters a matrix is divided by s_j = max|X_j|^α / max|W_j|^(1-α), and
the matrix's column multiplied by it.  Beyond the paper, which folds into norms alone, a value's rows and a
gated feed-forward's `up` rows take the factors of the output and the down projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.options import option
from gpt54_convert.core.passes import Context
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.forward.batch import Document
from gpt54_convert.transforms._folds import Fold
from gpt54_convert.transforms._scaling import Scaling

DESCRIPTION = "activation ranges move into the weights (SmoothQuant), for w8a8"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Smooth(Scaling):
    """Move activation ranges into the weights; the model computes the same as before."""

    alpha: float = option(0.5, "How much of the range moves, from 0 (none) to 1 (all).", metavar="A")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"--smooth {self.alpha:g} is not between 0 and 1")

    def scaled(
        self, checkpoint: Checkpoint, found: list[Fold], documents: list[Document], context: Context
    ) -> tuple[Checkpoint, int]:
        """See `Scaling`; every place is smoothed whose readers ran."""
        from gpt54_convert.transforms import _maxima

        names = {name for fold in found for name in fold.targets}
        maxima = _maxima.collect(checkpoint, documents, names, context.report, context.threads)
        smoothed, count = checkpoint, 0
        for fold in found:
            inputs = [maxima[name] for name in fold.targets if name in maxima]
            if inputs:
                factor = _factor(smoothed, fold, np.maximum.reduce(inputs), self.alpha)
                smoothed, count = fold.apply(smoothed, factor), count + 1
        return smoothed, count


def _factor(checkpoint: Checkpoint, fold: Fold, inputs: Floats, alpha: float) -> Floats:
    """s [channels] float32, 1 for a channel that is dead on either side."""
    weights = np.maximum.reduce([column_maxima(checkpoint.tensors[name]) for name in fold.targets])
    activation, weight = fold.per_channel(inputs), fold.per_channel(weights)
    alive = (activation > 0) & (weight > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = activation.astype(np.float64) ** alpha / weight.astype(np.float64) ** (1 - alpha)
    return np.where(alive, np.clip(wanted, 1e-5, 1e5), 1).astype(np.float32)


def column_maxima(tensor: LazyTensor) -> Floats:
    """The greatest absolute value of every column, [columns].  Raises InputError where one is not finite."""
    found = np.zeros(tensor.columns, np.float32)
    for start, stop in tensor.chunks():
        found = np.maximum(found, np.abs(tensor.float_rows(start, stop)).max(axis=0))
    if not np.isfinite(found).all():
        column = int(np.argmin(np.isfinite(found)))
        raise InputError(f"tensor {tensor.name}: column {column} holds a weight that is not finite")
    return found
