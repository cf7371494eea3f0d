"""What is known of a model when channels are chosen: what flows into each weight, and through each norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from gpt54_convert import archs
from gpt54_convert.archs import Architecture, Match
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.prune.energies import Energy
from gpt54_convert.prune.spaces import WIDTH, Space, axes

Matches = dict[str, Match]


@dataclass(frozen=True)
class Evidence:
    """Energies are mean squares, up to a factor.

    inputs: by tensor, what flows into each of its columns [in].
    residual: by norm, the channels before it [width]; "" for every norm that is not named.
    columns: by tensor, the squared norm of each column [in].
    """

    inputs: Mapping[str, Energy]
    residual: Mapping[str, Energy]
    columns: Mapping[str, Energy]


def described(checkpoint: Checkpoint) -> Matches:
    """The tensors that the architecture's table knows, by name."""
    assert checkpoint.architecture is not None
    architecture = archs.by_name(checkpoint.architecture)
    found = ((name, architecture.match(name)) for name in checkpoint.tensors)
    return {name: match for name, match in found if match is not None}


def writer(match: Match, space: Space) -> bool:
    """Whether a matrix writes to the residual stream, whose channels are the width."""
    weight = match.weight
    if match.is_bias or len(weight.shape) < 2 or space.size != WIDTH:
        return False
    return weight.role.startswith("embed") or (weight.shape[0] == WIDTH and weight.role != "pooler")


def readers(architecture: Architecture, matches: Matches, space: Space) -> list[str]:
    """The tensors whose columns a space counts and that tell what its indices are worth.

    Heads and ffn channels are worth what the matrix behind them (`out`, `down`) makes of them; a channel of
    the width what every matrix that reads it does, a tied head included.
    """
    has_head = any(match.weight.role == "head" for match in matches.values())
    found = []
    for name, match in matches.items():
        if match.is_bias or len(match.weight.shape) < 2 or match.weight.only_first:
            continue
        role = match.weight.role
        embeds = role.startswith("embed") and (role != "embed" or has_head)
        counted = {other for _, other in axes(architecture, match)[1]}
        if space in counted and not embeds:
            found.append(name)
    return found


def scores(
    architecture: Architecture, matches: Matches, space: Space, evidence: Evidence, count: int
) -> Energy:
    """The worth of each index of a space [count]: energy that flows in times the weights that take it on.

    Each reader counts alike, so that no layer drowns the others.
    """
    total = np.zeros(count)
    for name in readers(architecture, matches, space):
        if name not in evidence.inputs:  # the model does not run it (a pooler, say)
            continue
        flow = evidence.inputs[name] * evidence.columns[name]
        each = flow.reshape(count, -1).sum(1)
        total += each / max(each.sum(), np.finfo(float).tiny)
    return total


def needed(architecture: Architecture, matches: Matches, wanted: Iterable[Space]) -> list[str]:
    """Every tensor whose columns count for one of the spaces."""
    names = (readers(architecture, matches, space) for space in wanted)
    return list(dict.fromkeys(name for each in names for name in each))
