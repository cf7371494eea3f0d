"""Kullback-Leibler divergence of the artifact's distribution from the reference's, and the reverse."""

from __future__ import annotations

import numpy as np

from gpt54_convert.verify.pairs import Figure, Pair, Values

KIND = "logits"
FIGURES = (
    Figure("kl_mean_nats", "mean", "kl", description="KL(reference ‖ artifact), mean over tokens"),
    Figure("kl_median_nats", "quantile", "kl", q=0.5),
    Figure("kl_p95_nats", "quantile", "kl", q=0.95),
    Figure("kl_p99_nats", "quantile", "kl", q=0.99),
    Figure("kl_p999_nats", "quantile", "kl", q=0.999),
    Figure("kl_max_nats", "max", "kl"),
    Figure("reverse_kl_mean_nats", "mean", "reverse_kl", description="KL(artifact ‖ reference)"),
)


def columns(pair: Pair) -> dict[str, Values]:
    p, q = pair.log_reference, pair.log_artifact
    difference = p - q
    # Rounding alone can make it negative, by about 1e-16: there it is zero.
    return {
        "kl": np.maximum((np.exp(p) * difference).sum(axis=1), 0.0),
        "reverse_kl": np.maximum(-(np.exp(q) * difference).sum(axis=1), 0.0),
    }
