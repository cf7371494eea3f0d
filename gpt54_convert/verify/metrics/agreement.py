"""How often both models would say the same next token."""

from __future__ import annotations

import numpy as np

from gpt54_convert.verify.pairs import Figure, Pair, Values

KIND = "logits"
FIGURES = (
    Figure("top1_agreement", "mean", "top1", better="high", description="same most likely token"),
    Figure("top5_agreement", "mean", "top5", better="high", description="shared part of the five likeliest"),
)


def columns(pair: Pair) -> dict[str, Values]:
    top1 = pair.reference.argmax(axis=1) == pair.artifact.argmax(axis=1)
    count = min(5, pair.reference.shape[1])
    first, second = _top(pair.reference, count), _top(pair.artifact, count)
    shared = (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)
    return {"top1": top1.astype(np.float64), "top5": shared}


def _top(logits: np.ndarray, count: int) -> np.ndarray:
    return np.argpartition(logits, -count, axis=1)[:, -count:]
