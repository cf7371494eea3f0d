"""AWQ: weights that meet large activations are scaled up before they are rounded, their inputs down.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration"
(MLSys 2024).  Channel j of what enters a matrix is divided by s_j = mean|X_j|^α and the matrix's column
multiplied by it; α is sought for every place by the error of the outputs.  Beyond the paper, α = 0 stays
wherever the gain does not show on text held back, and grouped queries share their value's factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.options import option
from gpt54_convert.core.passes import Context
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.forward.batch import Document
from gpt54_convert.quantize.assign import assign
from gpt54_convert.quantize.encode import solver
from gpt54_convert.quantize.grids import FLOAT, Grid, grid
from gpt54_convert.quantize.schemes import scheme
from gpt54_convert.transforms._folds import Fold
from gpt54_convert.transforms._scaling import Scaling

DESCRIPTION = "weights that meet large activations are scaled up before rounding (AWQ)"
ALPHAS = tuple(step / 10 for step in range(11))
_METHOD = "rtn"  # rounds while α is sought; quick, and it needs nothing
_LIMIT = 1e4  # of a factor, either way: float16 scales end not far beyond

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Inputs:
    """What enters a matrix: mean [columns] of |x|, and vectors [·, columns], some of them held back."""

    mean: Floats
    used: Floats
    held: Floats


@dataclass(frozen=True)
class Awq(Scaling):
    """Scale up weights that meet large activations; the model computes the same as before."""

    grid: str = option("int4", "Scheme or grid on which the weights will be rounded.", metavar="NAME")

    def __post_init__(self) -> None:
        super().__post_init__()
        if grid(scheme(self.grid).default).kind == FLOAT:
            raise UsageError(f"--awq prepares for rounding, and {self.grid} rounds nothing")

    def scaled(
        self, checkpoint: Checkpoint, found: list[Fold], documents: list[Document], context: Context
    ) -> tuple[Checkpoint, int]:
        """See `Scaling`; every place gets the factors that round best."""
        from gpt54_convert.transforms import _inputs

        names = {fold.targets[0] for fold in found}  # every reader of a place is fed the same
        inputs = _inputs.collect(checkpoint, documents, names, context.report, context.threads)
        grids = grids_of(checkpoint, self.grid)
        scaled, count = checkpoint, 0
        with context.report.progress("choosing scales", len(found)) as advance:
            for fold in found:
                factor = np.ones(fold.channels, np.float32)
                if fold.targets[0] in inputs:
                    # Scaling rows does not change how they are rounded: no fold depends on another.
                    factor = choose(checkpoint, fold, inputs[fold.targets[0]], grids)
                count += bool((factor != 1).any())
                scaled = fold.apply(scaled, factor)
                advance(1)
        return scaled, count


def grids_of(checkpoint: Checkpoint, name: str) -> dict[str, Grid]:
    """The grid of every tensor by the scheme (or grid) `name`, were every container able to hold it."""
    chosen = assign(checkpoint, scheme(name), {}, lambda role, tensor, wanted: None)
    return {name: assignment.grid for name, assignment in chosen.items()}


def choose(checkpoint: Checkpoint, fold: Fold, inputs: Inputs, grids: Mapping[str, Grid]) -> Floats:
    """The factors [channels] of the best α; all 1 where they do not help on the vectors held back."""
    factors = [factors_of(fold, inputs.mean, alpha) for alpha in ALPHAS]
    errors = sum(
        output_errors(checkpoint.tensors[name], grids[name], inputs, [f[fold.channel] for f in factors])
        for name in fold.targets
        if grids[name].kind != FLOAT
    )
    if isinstance(errors, int):  # nothing here will be rounded
        return factors[0]
    used, held = errors
    best = int(np.argmin(used))
    return factors[best] if held[best] < held[0] else factors[0]


def factors_of(fold: Fold, mean: Floats, alpha: float) -> Floats:
    """s = mean|X|^α [channels], their geometric middle 1; a dead channel's is 1.  All are 1 for α = 0."""
    size = fold.per_channel(mean).astype(np.float64)
    alive = size > 0
    wanted = np.ones(len(size))
    if alive.any():
        logs = alpha * np.log(size[alive])
        wanted[alive] = np.exp(logs - logs.mean())
    return np.clip(wanted, 1 / _LIMIT, _LIMIT).astype(np.float32)


def output_errors(
    tensor: LazyTensor, grid: Grid, inputs: Inputs, factors: Sequence[Floats]
) -> NDArray[np.float64]:
    """Mean over vectors of |E x|² with E = round(W·s)/s - W, [2, factors]: vectors used, and held back.

    Raises InputError where a weight is not finite.
    """
    solve = solver(_METHOD)
    errors = np.zeros((2, len(factors)))
    for start, stop in tensor.chunks():
        weight = tensor.float_rows(start, stop)
        for at, factor in enumerate(factors):
            try:
                rounded = solve(weight * factor, grid).dequantize()
            except InputError as error:
                raise InputError(f"tensor {tensor.name}: {error}") from error
            difference = (rounded / factor - weight).T
            for part, vectors in enumerate((inputs.used, inputs.held)):
                output = (vectors @ difference).reshape(-1)
                errors[part, at] += float(np.vdot(output, output)) / len(vectors)
    return errors
