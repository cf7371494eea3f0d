"""Between which values the inputs of matrices lie on the calibration text, for scales that are fixed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.calibrate import text as texts
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.quantize.assign import place

if TYPE_CHECKING:
    import torch

Range = tuple[float, float]
# A range so many times as wide as what a usual token spans leaves that token six of the eight bits.
_LOOSE = 4.0


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

    Left out are those whose range single tokens stretch: models that put most of a text's weight on its first
    token make values there that are a thousand times those of others, which a fixed scale would round to 0.
    Then what was run and what was left out, for the manifest.
    Raises InputError where an activation is not finite, and what `texts` raises for text that is of no use.
    """
    from gpt54_convert.calibrate.watch import watched
    from gpt54_convert.forward.torch_model import TorchReference

    matrices = {name for name in names if len(checkpoint.tensors[name].shape) > 1}
    found: dict[str, Range] = {}
    spans: dict[str, list[NDArray[np.float32]]] = {}

    def look(name: str, values: torch.Tensor) -> None:
        tokens = values.flatten(0, -2).float()
        lows, highs = tokens.amin(1).numpy(), tokens.amax(1).numpy()
        low, high = float(lows.min()), float(highs.max())
        if not np.isfinite([low, high]).all():
            raise InputError(f"tensor {name}: what enters it is not finite on this text")
        before = found.get(name, (low, high))
        found[name] = min(low, before[0]), max(high, before[1])
        spans.setdefault(name, []).append(np.maximum(highs, 0) - np.minimum(lows, 0))

    text = texts.read(options)
    batches = texts.batches(texts.documents(text, checkpoint, options))
    with (
        TorchReference(checkpoint, threads) as reference,
        watched(checkpoint, reference, matrices, look),
        report.progress("measuring activations", len(batches)) as advance,
    ):
        for batch in batches:
            reference.forward(batch)
            advance(1)
    loose = sorted(name for name in found if _is_loose(found[name], np.concatenate(spans[name])))
    if loose:
        report.note(
            f"static: what enters {len(loose)} of {len(found)} matrices ({_roles(loose, checkpoint)}) has a "
            f"range more than {_LOOSE:g} times as wide as a usual token's, which no fixed scale serves: "
            "these inputs are rounded in blocks as they come"
        )
    documents = [document for batch in batches for document in batch.documents]
    return {name: each for name, each in found.items() if name not in loose}, {
        "text_sha256": texts.digest(text),
        "documents": len(documents),
        "tokens": sum(len(document.tokens) for document in documents),
        "rounded_as_they_come": loose,
    }


def _is_loose(whole: Range, spans: NDArray[np.float32]) -> bool:
    """Whether the range of all tokens is far wider than that of the middle one; both hold 0."""
    return max(whole[1], 0.0) - min(whole[0], 0.0) > _LOOSE * float(np.median(spans))


def _roles(names: Iterable[str], checkpoint: Checkpoint) -> str:
    return ", ".join(sorted({place(checkpoint, name).role for name in names}))
