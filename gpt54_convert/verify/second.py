"""An artifact's second graph, which other loaders open: that it answers as the first one does.

Kernels that round what enters a product to 8 bits round otherwise after a sum in another order, and some
models make much of that.  So both graphs are run twice: without such rounding, where they must agree, and as
they are, where the second may lie as far from the first one's exact answers as the first itself, and as far
again.
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

_TOKENS = 256
_LIMIT = 1e-3  # mean KL, nats; float16 graphs come to 1e-5
_FACTOR = 2.0


class Second:
    """A second graph, and what the first one answers to some documents, one by one."""

    def __init__(self, module: ModuleType, path: Path, file: Path, source: Checkpoint, threads: int) -> None:
        self._module, self._path, self._file = module, path, file
        self._source, self._threads = source, threads
        self._batches: list[Batch] = []
        self._first: list[Floats] = []

    def listen(self, documents: list[Document], runner: Runner) -> None:
        """Run the first graph as it is."""
        self._batches = [stack([document], i) for i, document in enumerate(docs.some(documents, _TOKENS))]
        self._first = [runner.logits(batch) for batch in self._batches]

    def check(self) -> Check:
        """Run the first graph exactly and the second one twice, one after another."""
        open_second, threads = self._module.open_second, self._threads
        try:
            exact = self._answers(self._module.open_exact(self._path, self._source, threads))
            rounding = self._distance(exact, self._first)
            self._first = []
            apart = self._distance(exact, self._answers(open_second(self._file, threads, True)))
            rounded = self._distance(exact, self._answers(open_second(self._file, threads, False)))
        except Exception as error:  # of graphs that somebody changed, ONNX Runtime raises anything
            return self._made(FAIL, str(error))
        if apart is None or rounded is None or rounding is None:
            return self._made(FAIL, f"{self._file.name} answers with NaN or infinity")
        limit = _LIMIT + _FACTOR * rounding
        detail = (
            f"{self._file.name} is {apart:.2g} nats from the first graph's answers (at most {_LIMIT:g}), "
            f"and {rounded:.2g} with inputs rounded as they are (at most {limit:.2g})"
        )
        return self._made(PASS if apart <= _LIMIT and rounded <= limit else FAIL, detail, apart)

    def _made(self, outcome: str, detail: str, value: float | None = None) -> Check:
        return Check("outputs", self._file.name, outcome, detail, value, None if value is None else _LIMIT)

    def _answers(self, opened: AbstractContextManager[Any]) -> list[Floats]:
        with opened as runner:
            return [runner.logits(batch) for batch in self._batches]

    def _distance(self, reference: list[Floats], answers: list[Floats]) -> float | None:
        """Mean KL, nats; None where one is not finite."""
        tally = Tally(metrics.LOGITS)
        for each in zip(self._batches, reference, answers, strict=True):
            tally.add(*each)
        finite = tally.finite and tally.reference_finite
        return tally.figures()["kl_mean_nats"].value if finite else None


def of(module: ModuleType, path: Path, source: Checkpoint, threads: int) -> Second | None:
    """The second graph of the artifact at `path`, where it has one; see `runners`."""
    file: Path | None = module.second(path) if hasattr(module, "second") else None
    return None if file is None else Second(module, path, file, source, threads)
