"""The smaller checkpoint: views on the source's rows and columns, and a config.json that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpt54_convert import archs
from gpt54_convert.archs import Architecture, Match
from gpt54_convert.archs._resize import resized
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.picks import picked, scaled
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.prune.spaces import KV_HEADS, WIDTH, Indices, Space, axes, axis_indices


@dataclass(frozen=True)
class Selection:
    """What remains of a model.

    layers: by stack, the source's layers that stay, in order; a stack that is missing stays whole.
    kept: the indices that stay of each space (layers as the source numbers them); a missing one stays whole.
    energy: by norm (its name in the source; "" for all others), the share of the squared activations before
        it that the kept channels carry.  Its gain is changed so that what remains keeps its scale.
    """

    layers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    kept: Mapping[Space, Indices] = field(default_factory=dict)
    energy: Mapping[str, float] = field(default_factory=dict)


def cut(checkpoint: Checkpoint, selection: Selection, sizes: Mapping[str, int]) -> Checkpoint:
    """The model reduced to `selection`; `sizes` are those of the result.

    Nothing is read; what stays whole keeps its bytes.  Tensors that the table does not describe lose the
    same channels wherever an axis is as long as the width (a classifier on top, say).
    Raises UnsupportedError where config.json cannot say the sizes.
    """
    assert checkpoint.architecture is not None
    architecture = archs.by_name(checkpoint.architecture)
    old = architecture.sizes(checkpoint.config)
    gains = _gains(checkpoint, architecture, selection, old, sizes)
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        match = architecture.match(name)
        if match is None:
            tensors[name] = _undescribed(tensor, selection, old)
            continue
        new = _new_layer(match, selection.layers)
        if new is None:
            continue
        view = scaled(tensor, *gains.get(name, (1.0, 0.0)))
        for axis, factors in enumerate(axes(architecture, match)):
            view = picked(view, axis, axis_indices(factors, old, selection.kept))
        tensors[new.hf] = view.renamed(new.hf)
    return replace(
        checkpoint,
        tensors=tensors,
        config=resized(architecture, checkpoint.config, sizes, selection.layers),
    )


def _new_layer(match: Match, layers: Mapping[str, Sequence[int]]) -> Match | None:
    """The place of a tensor in the result, or None if its layer goes.

    What only the first layer has (relative positions) serves the whole stack and stays in the first.
    """
    kept = layers.get(match.weight.stack)
    if match.layer is None or kept is None or match.weight.only_first:
        return match
    return replace(match, layer=list(kept).index(match.layer)) if match.layer in kept else None


def _undescribed(tensor: LazyTensor, selection: Selection, old: Mapping[str, int]) -> LazyTensor:
    kept = selection.kept.get(Space(WIDTH))
    if kept is None or len(tensor.shape) > 2:
        return tensor
    for axis, length in enumerate(tensor.shape):
        if length == old[WIDTH]:
            tensor = picked(tensor, axis, kept)
    return tensor


def _gains(
    checkpoint: Checkpoint,
    architecture: Architecture,
    selection: Selection,
    old: Mapping[str, int],
    new: Mapping[str, int],
) -> dict[str, tuple[float, float]]:
    """Tensor -> (factor, shift): what a narrower model needs so that its activations keep their scale.

    A norm divides by the root of the mean square over the width.  With a share e of the energy left on w'
    of w channels that root changes by √(e·w/w'), and so must the gain.  Runtimes also multiply some outputs
    by a power of the width (`Architecture.width_scales`), which is undone here.
    """
    ratio = old[WIDTH] / new[WIDTH]
    if ratio == 1:
        return {}
    factors: dict[str, tuple[float, float]] = {}
    for name in checkpoint.tensors:
        match = architecture.match(name)
        if match is not None and match.weight.shape == (WIDTH,) and not match.is_bias:
            share = selection.energy.get(name, selection.energy.get("", 1 / ratio))
            factors[name] = (float(np.sqrt(share * ratio)), float(match.weight.plus_one))
    roles = {match.weight.role: name for name in checkpoint.tensors if (match := architecture.match(name))}
    powers = dict(architecture.width_scales(checkpoint.config))
    if "embed" in powers and "head" not in roles:  # the head is the embedding and grows with it
        powers["norm.final"] = powers.get("norm.final", 0.0) - powers["embed"]
    for role, power in powers.items():
        factor, shift = factors.get(roles[role], (1.0, 0.0))
        factors[roles[role]] = (factor * ratio**power, shift)
    return factors


def describe(selection: Selection) -> dict[str, Any]:
    """The choice as plain data: kept layers by stack, and kept indices of spaces, as ranges."""
    found: dict[str, Any] = {stack: ranges(kept) for stack, kept in selection.layers.items()}
    for space, kept in selection.kept.items():
        if space.size != KV_HEADS:
            found[str(space)] = ranges(kept.tolist())
    return found


def ranges(numbers: Sequence[int]) -> str:
    """`0-3, 5, 8-9`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
