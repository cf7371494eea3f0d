"""Graphs computed exactly: beside torch on the artifact's own weights, and a second graph beside the first.

Kernels that round what enters a product to 8 bits hide mistakes of the graph itself, a wrong table of
rotation or epsilon, behind an error that is expected of them.  Without such rounding the graph must answer
as torch does.  A second graph, which other loaders open, must then answer as the first one; as it is, it may
lie as far from the first one's exact answers as the first itself, and as far again: sums in another order
are rounded otherwise, and some models make much of that.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.forward.batch import Batch, Document, Floats, stack
from gpt54_convert.verify import documents as docs
from gpt54_convert.verify import metrics
from gpt54_convert.verify.runner import Runner
from gpt54_convert.verify.tally import Tally
from gpt54_convert.verify.verdict import FAIL, PASS, Check

FIGURES = {metrics.LOGITS: "kl_mean_nats", metrics.HIDDEN: "hidden_nmse"}
# Mean KL in nats, or squared error.  Float32 itself leaves 1e-13 to 1e-10, and graphs come to about as much;
# an epsilon a hundred times too large, in a tiny model with layers of 4 bits, to 6e-7.
_LIMIT, _HALF, _SECOND = 1e-8, 1e-3, 1e-3
_NOISE = 100.0  # times what float32 leaves, in models that make much of it
_FACTOR = 2.0
_TOKENS = 256


class Graphs:
    """An artifact's graphs, and what the first one answers to some documents, one by one."""

    def __init__(self, module: ModuleType, path: Path, source: Checkpoint, kind: str, threads: int) -> None:
        """kind: of answers.  module: see `runners`; it must have `open_exact`."""
        self._module, self._path, self._source, self._threads = module, path, source, threads
        self._kind = kind
        self._second: Path | None = module.second(path)
        self._batches: list[Batch] = []
        self._first: list[Floats] = []

    def listen(self, documents: list[Document], runner: Runner) -> None:
        """Run the first graph as it is, where a second one will be held to it."""
        self._batches = [stack([document], i) for i, document in enumerate(docs.some(documents, _TOKENS))]
        if self._second is not None:
            self._first = [runner.logits(batch) for batch in self._batches]

    def check(self, torch: Runner | None, noise: float) -> list[Check]:
        """Run the graphs, one after another.

        torch: a model of the artifact's own weights, if there is one.
        noise: what float32 leaves of this model's answers, as mean KL or squared error.
        """
        if torch is None and self._second is None:
            return []
        wanted = None if torch is None else [torch.logits(batch) for batch in self._batches]
        try:
            opened = self._module.open_exact(self._path, self._source, self._threads)
            half, exact = opened.half, self._answers(opened)
        except Exception as error:  # of graphs that somebody changed, ONNX Runtime raises anything
            return [Check("outputs", "graph", FAIL, str(error))]
        checks = []
        if wanted is not None:
            limit = max(_HALF if half else _LIMIT, _NOISE * noise)
            checks.append(_first(self._kind, self._distance(wanted, exact), limit))
        if self._second is not None:
            checks.append(self._check_second(self._second, exact))
        return checks

    def _check_second(self, file: Path, exact: list[Floats]) -> Check:
        open_second = self._module.open_second
        try:
            rounding = self._distance(exact, self._first)
            self._first = []
            apart = self._distance(exact, self._answers(open_second(file, self._threads, True)))
            rounded = self._distance(exact, self._answers(open_second(file, self._threads, False)))
        except Exception as error:
            return Check("outputs", file.name, FAIL, str(error))
        if apart is None or rounded is None or rounding is None:
            return Check("outputs", file.name, FAIL, f"{file.name} answers with NaN or infinity")
        limit = _SECOND + _FACTOR * rounding
        detail = (
            f"{file.name} is {apart:.2g} nats from the first graph's answers (at most {_SECOND:g}), "
            f"and {rounded:.2g} with inputs rounded as they are (at most {limit:.2g})"
        )
        outcome = PASS if apart <= _SECOND and rounded <= limit else FAIL
        return Check("outputs", file.name, outcome, detail, apart, _SECOND)

    def _answers(self, opened: AbstractContextManager[Any]) -> list[Floats]:
        with opened as runner:
            return [runner.logits(batch) for batch in self._batches]

    def _distance(self, reference: list[Floats], answers: list[Floats]) -> float | None:
        """Mean KL in nats, or squared error; None where an answer is not finite."""
        tally = Tally(self._kind)
        for each in zip(self._batches, reference, answers, strict=True):
            tally.add(*each)
        finite = tally.finite and tally.reference_finite
        return tally.figures()[FIGURES[self._kind]].value if finite else None


def _first(kind: str, apart: float | None, limit: float) -> Check:
    """The check of a first graph that is `apart` from torch, None for answers that are not finite."""
    if apart is None:
        return Check("outputs", "graph", FAIL, "computed without rounding, it answers with NaN or infinity")
    unit = "nats" if kind == metrics.LOGITS else "of the squares"
    detail = (
        f"computed without rounding of inputs it is {apart:.2g} {unit} from torch on the same weights "
        f"(at most {limit:.2g})"
    )
    return Check("outputs", "graph", PASS if apart <= limit else FAIL, detail, apart, limit)
