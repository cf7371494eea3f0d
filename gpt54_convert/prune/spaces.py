"""Which axis of which weight counts what: read off the shapes in the architecture's table.

A space is a set of indices that may shrink: the width of the whole model, the heads of one attention, the ffn
channels of one layer.  Every axis whose shape entry names it must lose the same indices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.archs import Architecture, Match

Indices = NDArray[np.intp]
WIDTH, FFN, HEADS, KV_HEADS = "width", "ffn", "heads", "kv_heads"
PRUNABLE = (WIDTH, FFN, HEADS, KV_HEADS)


@dataclass(frozen=True)
class Space:
    """One set of indices.

    size: the Sizes entry that counts it.  stack: the stack of its layer.  module: `attn`, `cross`, `ffn`.
    layer: None where all layers of the stack share it (heads that share one table of relative positions).
    The width is Space("width"): one for the whole model.
    """

    size: str
    stack: str = ""
    module: str = ""
    layer: int | None = None

    def __str__(self) -> str:
        where = "" if self.layer is None else f" of layer {self.layer}"
        side = " (encoder)" if self.stack.startswith("encoder") else ""
        return f"{self.module} {self.size}{where}{side}".strip()


def module_of(role: str) -> str:
    """`attn` of `enc.attn.q`."""
    return role.removeprefix("enc.").split(".", 1)[0]


def space_of(architecture: Architecture, match: Match, factor: str) -> Space:
    """The space that a factor of a weight's shape entry counts in."""
    if factor == WIDTH:
        return Space(WIDTH)
    stack, module = match.weight.stack, module_of(match.weight.role)
    shared = any(
        weight.only_first
        and weight.stack == stack
        and module_of(weight.role) == module
        and any(factor in entry.split("*") for entry in weight.shape)
        for weight in architecture.weights
    )
    return Space(factor, stack, module, None if shared else match.layer)


def axes(architecture: Architecture, match: Match) -> list[list[tuple[str, Space | None]]]:
    """For each axis of a tensor, the factors of its length and the space of each that may shrink."""
    entries = match.weight.shape[:1] if match.is_bias else match.weight.shape
    return [
        [
            (factor, space_of(architecture, match, factor) if factor in PRUNABLE else None)
            for factor in entry.split("*")
        ]
        for entry in entries
    ]


def axis_indices(
    factors: list[tuple[str, Space | None]], sizes: Mapping[str, int], kept: Mapping[Space, Indices]
) -> Indices:
    """What remains of an axis whose length is the product of `factors`, the last one varying fastest."""
    result = np.zeros(1, np.intp)
    for name, space in factors:
        length = int(name) if name.isdigit() else sizes[name]
        part = kept.get(space, np.arange(length)) if space else np.arange(length)
        result = (result[:, None] * length + part[None, :]).reshape(-1)
    return result


def spaces(architecture: Architecture, sizes: Mapping[str, int], size: str) -> list[Space]:
    """Every space of a model that counts in `size`, in the order of its weights."""
    found: dict[Space, None] = {}
    for match in architecture.expected(sizes).values():
        for axis in axes(architecture, match):
            found |= {space: None for _, space in axis if space is not None and space.size == size}
    return list(found)
