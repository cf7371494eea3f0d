"""Encoders have no logits: what is compared are their last hidden states."""

from __future__ import annotations

import numpy as np

from gpt54_convert.verify.pairs import Figure, Pair, Values

KIND = "hidden"
FIGURES = (
    Figure(
        "cosine_mean",
        "mean",
        "cosine",
        better="high",
        description="cosine of hidden states, mean over tokens",
    ),
    Figure("cosine_p01", "quantile", "cosine", q=0.01, better="high"),
    Figure("hidden_nmse", "ratio", "square_error", "energy", description="squared error over squared states"),
    Figure("hidden_max_abs", "max", "max_abs"),
)


def columns(pair: Pair) -> dict[str, Values]:
    first, second = pair.reference.astype(np.float64), pair.artifact.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    error = second - first
    return {
        "cosine": (first * second).sum(axis=1) / np.maximum(norms, 1e-30),
        "square_error": (error**2).mean(axis=1),
        "energy": (first**2).mean(axis=1),
        "max_abs": np.abs(error).max(axis=1),
    }
