"""Drop the last layers."""

from __future__ import annotations

from gpt54_convert.prune.layers import Distances

DESCRIPTION = "drops the last layers; measures nothing"
MEASURES = False


def choose(depth: int, keep: int, distances: Distances | None) -> tuple[list[int], list[float] | None]:
    return list(range(keep)), None
