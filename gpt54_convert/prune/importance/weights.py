"""From the weights alone: needs no text and no torch.

What flows through a head is estimated by its value rows, through an ffn channel by its rows of up and gate,
through a channel of the width by what writes to it and by the gain of the norm that hands it on.

Ffn channels are judged by their largest entries rather than by norms: in trained language models a few of
them carry almost everything, and they show in single large weights (Yu et al. 2024, "The Super Weight in
Large Language Models", arXiv:2411.07191).  docs/pruning.md has figures.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpt54_convert import archs
from gpt54_convert.archs import Match
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.prune.energies import Energy, Profile, profiles
from gpt54_convert.prune.evidence import Evidence, described, needed, writer
from gpt54_convert.prune.options import Calibration
from gpt54_convert.prune.spaces import WIDTH, Space, module_of

DESCRIPTION = "norms of the weights; needs no text and no torch"
Place = tuple[str, int | None, bool]  # role, layer, is_bias


def evidence(
    checkpoint: Checkpoint, spaces: Iterable[Space], context: Context, calibration: Calibration
) -> Evidence:
    """Energies of the weights around each space; every tensor that counts is read once."""
    assert checkpoint.architecture is not None
    architecture, matches, wanted = (
        archs.by_name(checkpoint.architecture),
        described(checkpoint),
        list(spaces),
    )
    counted = needed(architecture, matches, wanted)
    wide = any(space.size == WIDTH for space in wanted)
    names = {(match.weight.role, match.layer, match.is_bias): name for name, match in matches.items()}
    before = [name for target in counted for name in _before(names, matches[target])]
    writers = [name for name, match in matches.items() if wide and writer(match, Space(WIDTH))]
    found = profiles(checkpoint.tensors, [*counted, *before, *writers], context.report)
    residual = _residual(matches, found, writers)
    sizes = architecture.sizes(checkpoint.config)
    inputs, columns = {}, {}
    for name in counted:
        makers = _before(names, matches[name])
        if makers:
            columns[name] = _shown(matches[name], found[name])[1]
            inputs[name] = _inner(matches, found, makers, len(columns[name]), sizes)
        else:
            columns[name] = found[name].sums[1]
            inputs[name] = residual * _gain(checkpoint, names, matches[name]) ** 2
    return Evidence(inputs, {"": residual}, columns)


def _before(names: dict[Place, str], match: Match) -> list[str]:
    """The weights and biases that make what flows into a module's last matrix; none for its first ones."""
    stem, _, part = match.weight.role.rpartition(".")
    makers = {"out": ("v", "qkv"), "down": ("up", "gate")}.get(part, ())
    places = ((f"{stem}.{maker}", match.layer, bias) for maker in makers for bias in (False, True))
    return [names[place] for place in places if place in names]


def _inner(
    matches: dict[str, Match],
    found: dict[str, Profile],
    makers: list[str],
    length: int,
    sizes: dict[str, int],
) -> Energy:
    """What flows inside a module [length]: values repeated for every head that shares them, or up × gate."""
    rows: dict[str, Energy] = {}
    for name in makers:  # a weight's rows and its bias add up, several weights multiply
        role = matches[name].weight.role
        rows[role] = rows.get(role, 0.0) + _shown(matches[name], found[name])[0]
    product = np.ones(length)
    for role, values in rows.items():
        made = values[-length:] if role.endswith(".qkv") else values  # query, key, value
        shared = length // len(made)
        product *= made.reshape(-1, sizes["head_dim"]).repeat(shared, 0).reshape(-1) if shared > 1 else made
    return product


def _shown(match: Match, found: Profile) -> tuple[Energy, ...]:
    """What rows and columns of a weight are judged by."""
    return found.peaks if module_of(match.weight.role) == "ffn" else found.sums


def _residual(matches: dict[str, Match], found: dict[str, Profile], writers: list[str]) -> Energy:
    """The share of each channel [width] in what is written to the residual stream, all writers alike."""
    shares = []
    for name in writers:
        written = found[name].sums[1 if matches[name].weight.role.startswith("embed") else 0]
        shares.append(written / max(written.sum(), np.finfo(float).tiny))
    return np.asarray(np.mean(shares, 0)) if shares else np.ones(1)


def _gain(checkpoint: Checkpoint, names: dict[Place, str], match: Match) -> Energy:
    """The gain [width] of the norm before a matrix that reads the residual stream; 1 where there is none."""
    role, layer = match.weight.role, match.layer
    prefix = "enc." if role.startswith("enc.") else ""
    place: Place = (f"{prefix}norm.{module_of(role)}", layer, False)
    if role in ("head", "embed"):
        place = ("norm.final", None, False)
    elif role in ("cross.k", "cross.v"):
        place = ("enc.norm.final", None, False)
    if place not in names:
        return np.ones(1)
    tensor = checkpoint.tensors[names[place]]
    plus_one = archs.by_name(checkpoint.architecture or "").match(tensor.name)
    shift = float(plus_one is not None and plus_one.weight.plus_one)
    return tensor.float_rows(0, tensor.row_count).reshape(-1).astype(np.float64) + shift
