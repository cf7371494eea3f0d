"""An artifact's second graph, which other loaders open: that it answers as the first one does."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from gpt54_convert.forward.batch import Batch, Document, Floats, stack
from gpt54_convert.verify import documents as docs
from gpt54_convert.verify import metrics
from gpt54_convert.verify.runner import Runner
from gpt54_convert.verify.tally import Tally
from gpt54_convert.verify.verdict import FAIL, PASS, Check

_TOKENS = 256
# Mean KL, nats: rounding of inputs to 8 bits makes up to 1e-4 of sums in another order.
_LIMIT = 1e-3


class Answers(NamedTuple):
    """What the first graph answers to some documents, one by one."""

    batches: list[Batch]
    logits: list[Floats]


def answers(module: ModuleType, path: Path, documents: list[Document], runner: Runner) -> Answers | None:
    """The first graph's, where the artifact at `path` has a second one; see `runners`."""
    if not hasattr(module, "second") or module.second(path) is None:
        return None
    batches = [stack([document], i) for i, document in enumerate(docs.some(documents, _TOKENS))]
    return Answers(batches, [runner.logits(batch) for batch in batches])


def check(module: ModuleType, path: Path, first: Answers, threads: int) -> Check:
    """Run the second graph on the same documents."""
    file: Path = module.second(path)
    tally = Tally(metrics.LOGITS)
    try:
        with module.open_second(file, threads) as runner:
            for batch, logits in zip(first.batches, first.logits, strict=True):
                tally.add(batch, logits, runner.logits(batch))
    except Exception as error:  # of graphs that somebody changed, ONNX Runtime raises anything
        return Check("outputs", file.name, FAIL, str(error))
    if not tally.finite:
        return Check("outputs", file.name, FAIL, f"{file.name} answers with NaN or infinity")
    found = tally.figures()["kl_mean_nats"].value
    detail = f"{file.name} is {found:.2g} nats from the first graph's answers (at most {_LIMIT:g})"
    return Check("outputs", file.name, PASS if found <= _LIMIT else FAIL, detail, found, _LIMIT)
