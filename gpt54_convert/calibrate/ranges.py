"""Between which values the inputs of matrices lie on the calibration text, for scales that are fixed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt54_convert.calibrate import text as texts
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    import torch

Range = tuple[float, float]


def check(container: str, step: Any, fixed: bool) -> None:
    """Raise UnsupportedError where `step` wants fixed scales and the container has none (`fixed`)."""
    if _is_static(step) and not fixed:
        raise UnsupportedError(
            f"{container} cannot hold --activations static, which is for onnx; add --to onnx, or take "
            "--activations dynamic"
        )


def unmeasured(step: Any, names: Iterable[str]) -> dict[str, Range] | None:
    """Ranges for a plan, which measures nothing; None where scales are not fixed."""
    return dict.fromkeys(names, (0.0, 1.0)) if _is_static(step) else None


def _is_static(step: Any) -> bool:
    return getattr(step, "activations", "") == "static"


def measure(
    checkpoint: Checkpoint, names: Iterable[str], options: Calibration, report: Report, threads: int = 0
) -> tuple[dict[str, Range], dict[str, Any]]:
    """Tensor -> (least, greatest) value that entered it, for those of `names` that a module multiplies by.

    Then what was run, for the manifest.
    Raises InputError where an activation is not finite, and what `texts` raises for text that is of no use.
    """
    from gpt54_convert.calibrate.watch import watched
    from gpt54_convert.forward.torch_model import TorchReference

    found: dict[str, Range] = {}

    def look(name: str, values: torch.Tensor) -> None:
        low, high = (float(each) for each in values.aminmax())
        if not np.isfinite([low, high]).all():
            raise InputError(f"tensor {name}: what enters it is not finite on this text")
        before = found.get(name, (low, high))
        found[name] = min(low, before[0]), max(high, before[1])

    text = texts.read(options)
    batches = texts.batches(texts.documents(text, checkpoint, options))
    with (
        TorchReference(checkpoint, threads) as reference,
        watched(checkpoint, reference, names, look),
        report.progress("measuring activations", len(batches)) as advance,
    ):
        for batch in batches:
            reference.forward(batch)
            advance(1)
    documents = [document for batch in batches for document in batch.documents]
    return found, {
        "text_sha256": texts.digest(text),
        "documents": len(documents),
        "tokens": sum(len(document.tokens) for document in documents),
    }
