"""Drop the layers that turn their hidden states least.

Block influence: Men et al. 2024, "ShortGPT", arXiv:2403.03853.
"""

from __future__ import annotations

import numpy as np

from gpt54_convert.prune.layers import Distances

DESCRIPTION = "drops the layers that turn hidden states least, each judged alone"
MEASURES = True


def choose(depth: int, keep: int, distances: Distances | None) -> tuple[list[int], list[float] | None]:
    """Influence of layer i: 1 − cos of the states before and behind it."""
    assert distances is not None
    influence = np.diagonal(distances.cosine, 1)
    kept = np.sort(np.argsort(-influence, kind="stable")[:keep])
    return kept.tolist(), influence.tolist()
