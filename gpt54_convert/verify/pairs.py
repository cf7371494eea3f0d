"""Both models' answers to the same tokens, and how columns of them become figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Answers for some tokens.  reference, artifact [tokens, vocab] (or [tokens, width]); targets [tokens].

    A target of -1 is a token without a known successor.
    """

    reference: NDArray[np.float32]
    artifact: NDArray[np.float32]
    targets: NDArray[np.int64]

    @cached_property
    def log_reference(self) -> Values:
        """Log-probabilities of the reference, [tokens, vocab]."""
        return _log_softmax(self.reference)

    @cached_property
    def log_artifact(self) -> Values:
        """Log-probabilities of the artifact, [tokens, vocab]."""
        return _log_softmax(self.artifact)


def _log_softmax(logits: NDArray[np.float32]) -> Values:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


@dataclass(frozen=True)
class Figure:
    """A number made of columns.

    name: with its unit as the last word, as reports print it.  how: `mean`, `exp` (of the mean), `ratio`
    (mean of `column` over mean of `other`), `exp_difference` (exp of the mean of column minus other),
    `quantile` (`q`), or `max`.  better: `low` or `high`, or "" for what no gate should judge.
    """

    name: str
    how: str
    column: str
    other: str = ""
    q: float = 0.0
    better: str = "low"
    description: str = ""

    def value(self, columns: dict[str, Values]) -> float:
        """The figure over all tokens."""
        values = columns[self.column]
        if self.how == "quantile":
            return float(np.quantile(values, self.q))
        if self.how == "max":
            return float(values.max())
        other = columns[self.other].mean() if self.other else 0.0
        return float(self.of_means(values.mean(), other))

    def of_means(self, mean: NDArray[np.float64] | float, other: NDArray[np.float64] | float) -> Values:
        """The figure from the means of its columns (of one sample, or of many at once)."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.how == "exp":
                return np.asarray(np.exp(mean))
            if self.how == "exp_difference":
                return np.asarray(np.exp(np.subtract(mean, other)))
            if self.how == "ratio":
                return np.asarray(np.divide(mean, other))
        return np.asarray(mean)
