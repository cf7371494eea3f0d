"""How well both predict the text itself."""

from __future__ import annotations

import numpy as np

from gpt54_convert.verify.pairs import Figure, Pair, Values

KIND = "logits"
FIGURES = (
    Figure("perplexity", "exp", "nll_artifact", better="", description="of the artifact on this text"),
    Figure("perplexity_reference", "exp", "nll_reference", better=""),
    Figure("perplexity_ratio", "exp_difference", "nll_artifact", "nll_reference"),
    Figure(
        "true_probability_change", "mean", "true_change", better="", description="mean of q(true) - p(true)"
    ),
    Figure("true_probability_mean_square", "mean", "true_square"),
)


def columns(pair: Pair) -> dict[str, Values]:
    rows = np.arange(len(pair.targets))
    p = pair.log_reference[rows, pair.targets]
    q = pair.log_artifact[rows, pair.targets]
    change = np.exp(q) - np.exp(p)
    return {"nll_reference": -p, "nll_artifact": -q, "true_change": change, "true_square": change**2}
