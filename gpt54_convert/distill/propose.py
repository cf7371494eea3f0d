"""A first map from a teacher to a shape: checked, then layers, then heads and channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt54_convert import archs, loaders
from gpt54_convert.archs import Architecture
from gpt54_convert.archs._resize import resized
from gpt54_convert.core import discover
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.distill.choice import Choice, means, picks
from gpt54_convert.distill.mapping import LEAST_SQUARES, Map, Special, keys
from gpt54_convert.distill.options import MapOptions
from gpt54_convert.distill.origin import described, origins
from gpt54_convert.distill.vocabulary import reconciled
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.loaders._folder import read_json, side_files
from gpt54_convert.prune.cut import Selection, cut
from gpt54_convert.prune.flow import IMPORTANCE, LAYERS, STACKS
from gpt54_convert.prune.layers import Distances
from gpt54_convert.prune.needs import layer_distances
from gpt54_convert.prune.options import Calibration
from gpt54_convert.prune.select import select
from gpt54_convert.prune.spaces import FFN, HEADS, KV_HEADS, WIDTH, spaces
from gpt54_convert.prune.targets import tier_sizes

Sizes = Mapping[str, int]
SHRINKING = (WIDTH, FFN, HEADS, KV_HEADS)
# Between these, the student has no place for token types: the first type is added to every position.
_TYPES = ("bert.embeddings.token_type_embeddings.weight", 0)


@dataclass(frozen=True)
class Shape:
    """The student to be: its config.json, table and sizes, and its own tokenizer's files if it has any."""

    config: Mapping[str, Any]
    architecture: Architecture
    sizes: Sizes
    tokenizer: Mapping[str, bytes]


def propose(teacher: Checkpoint, options: MapOptions, context: Context, path: Path | None) -> Map:
    """A map from `teacher`, which lies at `path`, to the shape that was asked for.

    Raises UsageError before any work where the shape is larger than the teacher, its heads do not divide or
    the vocabularies do not match.
    """
    old_table = described(teacher.config, str(teacher.source.path))
    old = old_table.sizes(teacher.config)
    shape = _shape(teacher, options, old_table, old)
    _check_names(options)
    _check(old_table, old, shape)
    vocab = reconciled(teacher, old["vocab"], shape.sizes["vocab"], shape.tokenizer)
    layers = _layers(teacher, options, old, shape.sizes, context)
    axes, scale = _axes(teacher, options, old, shape, layers, context)
    plan = Map(
        student=shape.config,
        teacher=None if path is None else path.absolute(),
        layers={stack: choice for stack, choice in layers.items() if not choice.is_all_of(old[stack])},
        axes={**({"vocab": vocab} if vocab else {}), **axes},
        read={WIDTH: LEAST_SQUARES} if options.read == LEAST_SQUARES and WIDTH in axes else {},
        scale=scale,
        tensors=_specials(old_table, shape, teacher),
    )
    origins(teacher, plan)  # every tensor has an origin
    return plan


def _shape(teacher: Checkpoint, options: MapOptions, table: Architecture, old: Sizes) -> Shape:
    if options.tier is not None:
        sizes = tier_sizes(options.tier, table, old)
        config: dict[str, Any] = dict(resized(table, teacher.config, sizes, {}))
        return Shape(config, table, table.sizes(config), {})
    assert options.student is not None
    path, files = options.student, {}
    if path.is_dir():
        side = side_files(path)
        config, files = dict(side.config), dict(side.tokenizer)
        if any(path.glob("*.safetensors")):  # tying is decided from the weights, as for the teacher
            config = dict(loaders.load(path).config)
    elif path.exists():
        config = read_json(path)
    else:
        raise InputError(f"{path}: does not exist; --student names a config.json or a folder that has one")
    new = described(config, str(path))
    if "tie_word_embeddings" not in config:  # what its readers would take
        config["tie_word_embeddings"] = new.tied or new.kind == "encoder-decoder"
    try:
        return Shape(config, new, new.sizes(config), files)
    except (TypeError, ValueError, ArithmeticError, KeyError) as error:
        raise InputError(f"{path}: a size is missing or no number ({error})") from error


def _check_names(options: MapOptions) -> None:
    for name, known, flag in (
        (options.layers, (*discover.names(LAYERS), "mean"), "--layers"),
        (options.channels, (*discover.names(IMPORTANCE), "first", "mean"), "--channels"),
    ):
        if name not in known:
            raise UsageError(f"{flag} {name!r} is not one of {', '.join(known)}")


def _check(old_table: Architecture, old: Sizes, shape: Shape) -> None:
    """Refuse what no map can do, in one sentence."""
    new = shape.sizes
    for name, size in new.items():
        if name in old and name not in ("vocab", "gated") and size > old[name]:
            raise UsageError(
                f"the student is larger than its teacher: {name} {size} against {old[name]}; a map only "
                "takes away"
            )
    for name in ("buckets", "gated"):
        if new.get(name, 0) != old.get(name, 0):
            raise UsageError(
                f"the student's {name} ({new.get(name)}) must be the teacher's ({old.get(name)})"
            )
    heads, kv = new[HEADS], new.get(KV_HEADS, new[HEADS])
    old_kv = old.get(KV_HEADS, old[HEADS])
    if heads % kv or heads // kv > old[HEADS] // old_kv:
        raise UsageError(
            f"the student's {heads} heads do not divide into {kv} KV heads of at most "
            f"{old[HEADS] // old_kv} each"
        )
    own = "head_dim" not in shape.architecture.size_keys
    if (own or shape.architecture.whole_heads) and new[WIDTH] % heads:
        raise UsageError(f"the student's width {new[WIDTH]} does not divide into its {heads} heads")
    if new["head_dim"] != old["head_dim"] and any(w.rope for w in old_table.weights) and new["head_dim"] % 2:
        raise UsageError(f"the student's head size {new['head_dim']} must be even for rotary positions")


def _layers(
    teacher: Checkpoint, options: MapOptions, old: Sizes, new: Sizes, context: Context
) -> dict[str, Choice]:
    """By stack, which layers the student's are made of."""
    stacks = [stack for stack in STACKS if stack in old and old[stack] != new[stack]]
    if options.layers == "mean":
        return {stack: _runs(old[stack], new[stack]) for stack in stacks}
    if not stacks:
        return {}
    way = discover.load(LAYERS, options.layers)
    distances: Mapping[str, Distances | None] = dict.fromkeys(stacks)
    if way.MEASURES:
        distances = layer_distances(teacher, context, _calibration(options))
    return {
        stack: picks(np.array(way.choose(old[stack], new[stack], distances[stack])[0])) for stack in stacks
    }


def _runs(old: int, new: int) -> Choice:
    return means([list(map(int, run)) for run in np.array_split(np.arange(old), new)])


def _axes(
    teacher: Checkpoint,
    options: MapOptions,
    old: Sizes,
    shape: Shape,
    layers: Mapping[str, Choice],
    context: Context,
) -> tuple[dict[str, Choice], dict[str, float]]:
    """The rules for every axis that shrinks, and what keeps the activations' scale."""
    table = archs.by_name(teacher.architecture or "")
    new = shape.sizes
    found = _plain(table, old, new)
    shrinking = [size for size in SHRINKING if size in old and size in new and new[size] != old[size]]
    if not shrinking:
        return found, {}
    if options.channels in ("first", "mean"):
        for size in shrinking:
            found[size] = _by_place(options.channels, size, old, new)
        return found, _scale(table, teacher, {}, old, new)
    sizes = {**old, **{size: new[size] for size in (*SHRINKING, *STACKS) if size in old and size in new}}
    shallow = _shallow(teacher, table, layers, sizes, old)
    wanted = [space for size in shrinking for space in spaces(table, table.sizes(shallow.config), size)]
    source = discover.load(IMPORTANCE, options.channels)
    evidence = source.evidence(shallow, wanted, context, _calibration(options))
    kept, energy = select(shallow, sizes, evidence)
    for space, indices in kept.items():
        if space.size in old:
            found[keys(space.size, space.stack, space.module, space.layer)[0]] = picks(indices)
    return _folded(found), _scale(table, teacher, energy, old, new)


def _shallow(
    teacher: Checkpoint, table: Architecture, layers: Mapping[str, Choice], sizes: Sizes, old: Sizes
) -> Checkpoint:
    """The teacher with as many layers as the student: the first behind each of the student's layers."""
    chosen: dict[str, Sequence[int]] = {
        stack: choice.members[:, 0].tolist() for stack, choice in layers.items()
    }
    depths = {stack: len(kept) for stack, kept in chosen.items()}
    return cut(teacher, Selection(chosen), {**old, **depths}) if chosen else teacher


def _plain(table: Architecture, old: Sizes, new: Sizes) -> dict[str, Choice]:
    """Axes of which importance knows nothing: positions and types from the first, head dimensions."""
    found: dict[str, Choice] = {}
    for size in ("positions", "types", "head_dim"):
        if size in old and size in new and new[size] != old[size]:
            found[size] = picks(np.arange(new[size]))
    if "head_dim" in found and any(weight.rope for weight in table.weights):
        half, small = old["head_dim"] // 2, new["head_dim"] // 2
        first = np.arange(small) * half // small  # the same frequencies, thinned out
        found["head_dim"] = picks(np.concatenate([first, half + first]))
    return found


def _by_place(how: str, size: str, old: Sizes, new: Sizes) -> Choice:
    if how == "mean" and size in (WIDTH, FFN):
        return _runs(old[size], new[size])
    if size != HEADS or old.get(KV_HEADS, old[HEADS]) == old[HEADS]:
        return picks(np.arange(new[size]))
    # heads stay with the keys they share: the first of each of the first groups
    group, each = old[HEADS] // old[KV_HEADS], new[HEADS] // new[KV_HEADS]
    return picks((np.arange(new[KV_HEADS])[:, None] * group + np.arange(each)).reshape(-1))


def _folded(axes: dict[str, Choice]) -> dict[str, Choice]:
    """One rule for all layers where all have the same."""
    stems: dict[str, list[str]] = {}
    for key in axes:
        stems.setdefault(key.split("@")[0], []).append(key)
    found: dict[str, Choice] = {}
    for stem, names in stems.items():
        same = all(np.array_equal(axes[name].members, axes[names[0]].members) for name in names)
        found |= {stem: axes[names[0]]} if same else {name: axes[name] for name in names}
    return found


def _scale(
    table: Architecture, teacher: Checkpoint, energy: Mapping[str, float], old: Sizes, new: Sizes
) -> dict[str, float]:
    """Factors for a narrower model, by role or name (see `prune.cut`): norms, and what the width scales."""
    ratio = old[WIDTH] / new[WIDTH]
    if ratio == 1:
        return {}
    found: dict[str, float] = {}
    for name, share in energy.items():
        found[name or "*norm.*"] = float(np.sqrt(share * ratio))
    powers = dict(table.width_scales(teacher.config))
    if "embed" in powers and not any(
        (m := table.match(n)) and m.weight.role == "head" for n in teacher.tensors
    ):
        powers["norm.final"] = powers.get("norm.final", 0.0) - powers["embed"]
    for role, power in powers.items():
        base = found.get("*norm.*", 1.0) if role.startswith("norm") else 1.0
        found[role] = base * ratio**power
    return {key: float(f"{value:.9g}") for key, value in found.items() if abs(value - 1) > 1e-9}


def _specials(old: Architecture, shape: Shape, teacher: Checkpoint) -> tuple[Special, ...]:
    """What the rules cannot say: a teacher's token types where the student has none."""
    names = [w.hf + w.hf_suffix for w in shape.architecture.weights if w.role == "embed.position"]
    if old.name == shape.architecture.name or "types" in shape.sizes or _TYPES[0] not in teacher.tensors:
        return ()
    heads = {**_HEADS} if "cls.predictions.bias" in teacher.tensors else {}
    return (
        *(Special(name, plus=_TYPES) for name in names),
        *(Special(name, source) for name, source in heads.items() if source in teacher.tensors),
    )


# The head of a masked language model, as BERT and DistilBERT name it.
_HEADS = {
    "vocab_transform.weight": "cls.predictions.transform.dense.weight",
    "vocab_transform.bias": "cls.predictions.transform.dense.bias",
    "vocab_layer_norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "vocab_layer_norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "vocab_projector.bias": "cls.predictions.bias",
}


def _calibration(options: MapOptions) -> Calibration:
    return Calibration(options.text, options.tokens, options.context)
