"""How far the logits themselves are apart."""

from __future__ import annotations

import numpy as np

from gpt54_convert.verify.pairs import Figure, Pair, Values

KIND = "logits"
FIGURES = (
    Figure("logits_nmse", "ratio", "square_error", "energy", description="squared error over squared logits"),
    Figure("logits_max_abs", "max", "max_abs"),
)


def columns(pair: Pair) -> dict[str, Values]:
    reference = pair.reference.astype(np.float64)
    error = pair.artifact - reference
    return {
        "square_error": (error**2).mean(axis=1),
        "energy": (reference**2).mean(axis=1),
        "max_abs": np.abs(error).max(axis=1),
    }
