"""A sample of the vectors that enter a matrix, seen by hooks on the running model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from gpt54_convert.calibrate.watch import watched
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Advance, Report
from gpt54_convert.errors import InputError
from gpt54_convert.forward.batch import Document, Floats
from gpt54_convert.forward.torch_model import TorchReference
from gpt54_convert.transforms._maxima import batches
from gpt54_convert.transforms.awq import Inputs

_HELD = 3  # every third document is held back
_SAMPLED = 512, 256  # vectors kept of each matrix: a fixed amount of memory however long the text


@dataclass
class _Seen:
    """mean [columns]: the sum of |x|; vectors: every so many of them."""

    mean: torch.Tensor
    count: int = 0
    vectors: list[torch.Tensor] = field(default_factory=list)


def collect(
    checkpoint: Checkpoint, documents: list[Document], names: Iterable[str], report: Report, threads: int = 0
) -> dict[str, Inputs]:
    """Tensor name -> what entered it, for those of `names` whose module ran.

    Raises InputError where an activation is not finite.
    """
    held = documents[_HELD - 1 :: _HELD] or documents  # a short text judges itself
    used = [document for number, document in enumerate(documents, 1) if number % _HELD]
    with report.progress("measuring activations", len(documents)) as advance:
        parts = [
            _run(checkpoint, part, wanted, names, advance, threads)
            for part, wanted in zip((used, held), _SAMPLED, strict=True)
        ]
    first, second = parts
    return {
        name: Inputs((seen.mean / seen.count).numpy(), _vectors(name, seen), _vectors(name, second[name]))
        for name, seen in first.items()
    }


def _run(
    checkpoint: Checkpoint,
    documents: list[Document],
    wanted: int,
    names: Iterable[str],
    advance: Advance,
    threads: int,
) -> dict[str, _Seen]:
    found: dict[str, _Seen] = {}
    step = max(1, sum(len(document.tokens) for document in documents) // wanted)

    def look(name: str, values: torch.Tensor) -> None:
        x = values.flatten(0, -2).float()
        seen = found.setdefault(name, _Seen(torch.zeros(x.shape[1])))
        seen.mean += x.abs().sum(0)
        seen.vectors.append(x[-seen.count % step :: step].clone())
        seen.count += len(x)

    with TorchReference(checkpoint, threads) as reference, watched(checkpoint, reference, names, look):
        for batch in batches(documents):
            reference.forward(batch)
            advance(len(batch.documents))
    return found


def _vectors(name: str, seen: _Seen) -> Floats:
    if not torch.isfinite(seen.mean).all():
        column = int(np.argmin(torch.isfinite(seen.mean).numpy()))
        raise InputError(f"tensor {name}: what enters its column {column} is not finite on this text")
    vectors: Floats = torch.cat(seen.vectors).numpy()
    return vectors
