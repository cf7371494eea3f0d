"""Whether a transform kept the function of the model, seen on a document."""

from __future__ import annotations

import numpy as np

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import InternalError
from gpt54_convert.forward.batch import Document

_SAME = 1e-3  # largest change of a logit, of their greatest, that float32 arithmetic may cause


def check(name: str, before: Checkpoint, after: Checkpoint, sample: list[Document], threads: int) -> None:
    """Run both: a table of an architecture could be wrong about what reads a norm.

    Raises InternalError where their outputs differ by more than rounding; `name` is the option to blame.
    """
    from gpt54_convert.forward.batch import stack
    from gpt54_convert.forward.torch_model import TorchReference

    batch = stack(sample, 0)
    with TorchReference(before, threads) as first, TorchReference(after, threads) as second:
        wanted, found = first.logits(batch), second.logits(batch)
    change = float(np.abs(found - wanted).max() / max(1e-30, float(np.abs(wanted).max())))
    if not change <= _SAME:
        raise InternalError(
            f"{name} changed this model's outputs by {change:.1e} of their size; quantize without --{name}"
        )
