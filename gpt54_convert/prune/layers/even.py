"""Keep layers at even distances, the first and the last among them."""

from __future__ import annotations

from gpt54_convert.prune.layers import Distances

DESCRIPTION = "keeps layers at even distances, the first and last among them; measures nothing"
MEASURES = False


def choose(depth: int, keep: int, distances: Distances | None) -> tuple[list[int], list[float] | None]:
    if keep == 1:
        return [0], None
    return [round(i * (depth - 1) / (keep - 1)) for i in range(keep)], None
