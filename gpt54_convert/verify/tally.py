"""Columns collected token by token, and their figures with confidence intervals.

The bootstrap resamples documents and not tokens: tokens of one document are no independent witnesses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InternalError, MeasureError
from gpt54_convert.forward.batch import Batch, Floats
from gpt54_convert.verify import metrics
from gpt54_convert.verify.pairs import Figure, Pair, Values

SAMPLES = 1000
_QUANTILE_SAMPLES = 200  # each sorts all tokens
_SLICE = 4 << 20  # logits handled at once in float64: 32 MB an array


@dataclass(frozen=True)
class Measured:
    """A figure, and its value in every resample of the documents."""

    name: str
    value: float
    samples: Values

    def to_dict(self) -> dict[str, float]:
        """The value and the bounds of its 95 % interval."""
        low, high = np.quantile(self.samples, (0.025, 0.975))
        return {"value": self.value, "low": float(low), "high": float(high)}


@dataclass
class Tally:
    """Everything measured between two models.

    finite: False as soon as one of the artifact's answers is not a number; nothing is measured then.
    """

    kind: str
    finite: bool = True
    reference_finite: bool = True
    _columns: dict[str, list[Values]] = field(default_factory=dict)
    _documents: list[NDArray[np.int64]] = field(default_factory=list)
    _positions: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, batch: Batch, reference: Floats, artifact: Floats) -> None:
        """The answers of both models, [batch, time, vocab]; padding is left out."""
        for row, document in enumerate(batch.documents):
            count = len(document.tokens)
            known = len(document.targets) == count
            targets = document.targets if known else np.full(count, -1)
            self._add(reference[row, :count], artifact[row, :count], targets)
            self._documents.append(np.full(count, batch.first + row))
            self._positions.append(np.arange(count))

    def _add(self, reference: Floats, artifact: Floats, targets: NDArray[np.int64]) -> None:
        if self.kind == metrics.HIDDEN and reference.shape[1] != artifact.shape[1]:
            raise MeasureError(
                f"hidden states of {artifact.shape[1]} values cannot be compared with the model's of "
                f"{reference.shape[1]}; judge this model by a task"
            )
        width = min(reference.shape[1], artifact.shape[1])  # one of them may pad its vocabulary
        reference, artifact = reference[:, :width], artifact[:, :width]
        self.reference_finite &= bool(np.isfinite(reference).all())
        self.finite &= bool(np.isfinite(artifact).all())
        if not (self.finite and self.reference_finite):
            return
        step = max(1, _SLICE // width)
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            pair = Pair(reference[part], artifact[part], targets[part])
            for metric in metrics.of_kind(self.kind):
                for name, values in metric.columns(pair).items():
                    self._columns.setdefault(name, []).append(values)

    @property
    def columns(self) -> dict[str, Values]:
        return {name: np.concatenate(parts) for name, parts in self._columns.items()}

    @property
    def token_count(self) -> int:
        return sum(map(len, self._documents))

    @property
    def document_count(self) -> int:
        return len(self._documents)

    def by_position(self, column: str, bins: int = 16) -> list[tuple[int, float]]:
        """(first position, mean of `column`) for bins of positions."""
        values, positions = self.columns[column], np.concatenate(self._positions)
        width = -(-(int(positions.max()) + 1) // bins)
        return [
            (start, float(values[(positions >= start) & (positions < start + width)].mean()))
            for start in range(0, int(positions.max()) + 1, width)
        ]

    def figures(self) -> dict[str, Measured]:
        """Every figure of every metric, with its interval.  Nothing may have been infinite."""
        if not (self.finite and self.reference_finite):
            raise InternalError("figures were asked for, although some answers are not finite")
        columns, documents = self.columns, np.concatenate(self._documents)
        weights = _resamples(len(self._documents))
        sums = _Sums(columns, documents, weights)
        found = {}
        for metric in metrics.of_kind(self.kind):
            for figure in metric.FIGURES:
                found[figure.name] = Measured(figure.name, figure.value(columns), sums.samples(figure))
        return found


def _resamples(documents: int) -> NDArray[np.float64]:
    """How often each document stands in each resample, [samples, documents]; always the same ones."""
    generator = np.random.default_rng(54)
    return generator.multinomial(documents, np.full(documents, 1 / documents), SAMPLES).astype(np.float64)


@dataclass
class _Sums:
    """Resampled means of columns."""

    columns: dict[str, Values]
    documents: NDArray[np.int64]
    weights: NDArray[np.float64]
    _means: dict[str, Any] = field(default_factory=dict)

    def samples(self, figure: Figure) -> Values:
        """The figure in every resample, [samples]."""
        if figure.how == "max":  # a bootstrap cannot say how large the largest may be
            return np.full(SAMPLES, figure.value(self.columns))
        if figure.how == "quantile":
            return self._quantiles(figure)
        other = self.mean(figure.other) if figure.other else 0.0
        return figure.of_means(self.mean(figure.column), other)

    def mean(self, column: str) -> Values:
        """Mean of a column in every resample, [samples]."""
        if column not in self._means:
            first, size = int(self.documents.min()), self.weights.shape[1]
            sums = np.bincount(self.documents - first, self.columns[column], size)
            counts = np.bincount(self.documents - first, minlength=size)
            self._means[column] = (self.weights @ sums) / (self.weights @ counts)
        found: Values = self._means[column]
        return found

    def _quantiles(self, figure: Figure) -> Values:
        order = np.argsort(self.columns[figure.column], kind="stable")
        values = self.columns[figure.column][order]
        owners = self.documents[order] - int(self.documents.min())
        found = np.empty(_QUANTILE_SAMPLES)  # repeated below, so that all figures have equally many
        for index, weight in enumerate(self.weights[:_QUANTILE_SAMPLES]):
            cumulated = np.cumsum(weight[owners])
            at = np.searchsorted(cumulated, figure.q * cumulated[-1])
            found[index] = values[min(at, len(values) - 1)]
        return np.resize(found, SAMPLES)
