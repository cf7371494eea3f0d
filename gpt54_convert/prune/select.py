"""From the worth of heads and channels to those that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.prune.energies import Energy
from gpt54_convert.prune.evidence import Evidence, described, scores
from gpt54_convert.prune.spaces import FFN, HEADS, KV_HEADS, WIDTH, Indices, Space, spaces


def shrinking(checkpoint: Checkpoint, sizes: Mapping[str, int]) -> list[Space]:
    """The spaces that must lose something for a model to get these sizes; KV heads go with their heads."""
    assert checkpoint.architecture is not None
    architecture = archs.by_name(checkpoint.architecture)
    old = architecture.sizes(checkpoint.config)
    changed = [size for size in (WIDTH, FFN, HEADS) if sizes[size] != old[size]]
    if sizes.get(KV_HEADS) != old.get(KV_HEADS) and HEADS not in changed:
        changed.append(HEADS)
    return [space for size in changed for space in spaces(architecture, old, size)]


def select(
    checkpoint: Checkpoint, sizes: Mapping[str, int], evidence: Evidence
) -> tuple[dict[Space, Indices], dict[str, float]]:
    """The indices of each shrinking space that stay, and the share of energy they carry before each norm."""
    assert checkpoint.architecture is not None
    architecture, matches = archs.by_name(checkpoint.architecture), described(checkpoint)
    old = architecture.sizes(checkpoint.config)
    kept: dict[Space, Indices] = {}
    energy: dict[str, float] = {}
    for space in shrinking(checkpoint, sizes):
        worth = scores(architecture, matches, space, evidence, old[space.size])
        if space.size == HEADS and old.get(KV_HEADS, old[HEADS]) != old[HEADS]:
            kv, kept[space] = _grouped(worth, old[KV_HEADS], sizes[KV_HEADS], sizes[HEADS])
            kept[replace(space, size=KV_HEADS)] = kv
        else:
            kept[space] = best(worth, sizes[space.size])
            if space.size == HEADS:
                kept[replace(space, size=KV_HEADS)] = kept[space]
        if space.size == WIDTH:
            energy = {name: _share(each, kept[space]) for name, each in evidence.residual.items()}
    return kept, energy


def best(worth: Energy, count: int) -> Indices:
    """The `count` indices of the highest worth, ascending; of equals the first."""
    return np.sort(np.argsort(-worth, kind="stable")[:count])


def _grouped(worth: Energy, old_kv: int, kv: int, heads: int) -> tuple[Indices, Indices]:
    """Whole groups by the worth of their best heads, and in each of them equally many heads."""
    each = heads // kv
    by_group = worth.reshape(old_kv, -1)
    top = -np.sort(-by_group, 1)[:, :each]
    groups = best(top.sum(1), kv)
    size = by_group.shape[1]
    return groups, np.concatenate([group * size + best(by_group[group], each) for group in groups])


def _share(energy: Energy, kept: Indices) -> float:
    total = float(energy.sum())
    return float(energy[kept].sum()) / total if total > 0 else len(kept) / len(energy)
