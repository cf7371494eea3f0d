"""Drop one run of layers: the one across which states turn least (Gromov et al. 2024, arXiv:2403.17887)."""

from __future__ import annotations

import numpy as np

from gpt54_convert.prune.layers import Distances

DESCRIPTION = "drops the one run of layers across which hidden states turn least"
MEASURES = True


def choose(depth: int, keep: int, distances: Distances | None) -> tuple[list[int], list[float] | None]:
    """Judged by the angle between the states before layer i and before layer i + dropped."""
    assert distances is not None
    dropped = depth - keep
    angles = np.diagonal(distances.angle, dropped)
    first = int(np.argmin(angles))
    return [layer for layer in range(depth) if not first <= layer < first + dropped], angles.tolist()
