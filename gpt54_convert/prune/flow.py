"""The order of things: sizes, then layers, then channels, each cut made of views on the one before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gpt54_convert import archs
from gpt54_convert.archs import Architecture
from gpt54_convert.core import discover
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.errors import UnsupportedError, UsageError
from gpt54_convert.prune.cut import Selection, cut, ranges
from gpt54_convert.prune.needs import layer_distances
from gpt54_convert.prune.select import select, shrinking
from gpt54_convert.prune.spaces import HEADS, KV_HEADS
from gpt54_convert.prune.sparsity import CRITERIA, sparsify
from gpt54_convert.prune.sparsity import targets as sparsity_targets
from gpt54_convert.prune.step import Prune
from gpt54_convert.prune.targets import targets

LAYERS, IMPORTANCE = "gpt54_convert.prune.layers", "gpt54_convert.prune.importance"
STACKS = {"encoder_layers": "encoder layers", "layers": "layers"}
SPARSITY_BUYS = (
    "{} of the layers' weights are zero, chosen by {}: the files are no smaller, and llama.cpp, ONNX Runtime "
    "and transformers run no faster for it (docs/pruning.md says who would)"
)
NOTES = "gpt54_convert"  # our entry in config.json; other readers skip it


def prune(options: Prune, checkpoint: Checkpoint, context: Context) -> Checkpoint:
    """See `Prune.apply`."""
    architecture, sizes = _checked(options, checkpoint)
    outline(options, checkpoint)  # refuses the rest before anything is measured
    old = architecture.sizes(checkpoint.config)
    layers = _choose_layers(options, checkpoint, sizes, context)
    result = cut(
        checkpoint, Selection(layers), {**old, **{stack: len(kept) for stack, kept in layers.items()}}
    )
    wanted = shrinking(result, sizes)
    if wanted:
        source = discover.load(IMPORTANCE, options.importance)
        evidence = source.evidence(result, wanted, context, options.calibration)
        kept, energy = select(result, sizes, evidence)
        result = cut(result, Selection({}, kept, energy), sizes)
    told = {name: old[name] for name in architecture.size_keys}
    _say(context.report, checkpoint, result, told, sizes)
    if options.pattern is not None:
        result = sparsify(result, options.pattern, options.criterion, context, options.calibration)
        context.report.note(SPARSITY_BUYS.format(options.pattern.text, options.criterion))
    return _noted(options, checkpoint, result, layers, told, sizes)


def outline(options: Prune, checkpoint: Checkpoint) -> Checkpoint:
    """See `Prune.outline`: the first of everything stays."""
    architecture, sizes = _checked(options, checkpoint)
    old = architecture.sizes(checkpoint.config)
    layers = {stack: range(sizes[stack]) for stack in STACKS if stack in old and sizes[stack] != old[stack]}
    kept = {}
    for space in shrinking(checkpoint, sizes):
        kept[space] = np.arange(sizes[space.size])
        if space.size == HEADS:
            kept[replace(space, size=KV_HEADS)] = np.arange(sizes.get(KV_HEADS, sizes[HEADS]))
    result = cut(checkpoint, Selection(layers, kept), sizes)
    if options.pattern is not None:
        sparsity_targets(result, options.pattern)
    told = {name: old[name] for name in architecture.size_keys}
    return _noted(options, checkpoint, result, layers, told, sizes)


def _checked(options: Prune, checkpoint: Checkpoint) -> tuple[Architecture, dict[str, int]]:
    """The architecture and the sizes to be; everything that can be refused is refused here."""
    if checkpoint.architecture is None:
        kind = checkpoint.config.get("model_type")
        raise UnsupportedError(
            f"{checkpoint.source.path}: nobody described the architecture {kind!r}, so what belongs together "
            "in it is unknown; docs/architectures.md shows how to add one"
        )
    for package, name, option in (
        (LAYERS, options.layer_choice, "--layer-choice"),
        (IMPORTANCE, options.importance, "--importance"),
        (CRITERIA, options.criterion, "--criterion"),
    ):
        if name not in discover.names(package):
            raise UsageError(f"{option} {name!r} is not one of {', '.join(discover.names(package))}")
    architecture = archs.by_name(checkpoint.architecture)
    tied = not any(
        match.weight.role == "head" for name in checkpoint.tensors if (match := architecture.match(name))
    )
    return architecture, targets(options, architecture, architecture.sizes(checkpoint.config), tied)


def _choose_layers(
    options: Prune, checkpoint: Checkpoint, sizes: Mapping[str, int], context: Context
) -> dict[str, list[int]]:
    """By stack, the layers that stay, where some go."""
    old = archs.by_name(checkpoint.architecture or "").sizes(checkpoint.config)
    stacks = [stack for stack in STACKS if stack in old and sizes[stack] != old[stack]]
    if not stacks:
        return {}
    way = discover.load(LAYERS, options.layer_choice)
    found = layer_distances(checkpoint, context, options.calibration) if way.MEASURES else {}
    chosen = {}
    for stack in stacks:
        chosen[stack], judged = way.choose(old[stack], sizes[stack], found.get(stack))
        _show(context.report, stack, options.layer_choice, chosen[stack], old[stack], judged)
    return chosen


def _show(
    report: Report, stack: str, way: str, kept: list[int], depth: int, judged: list[float] | None
) -> None:
    dropped = sorted(set(range(depth)) - set(kept))
    report.note(
        f"{STACKS[stack]} that go, by {way}: {ranges(dropped)}; {len(kept)} of {depth} stay: {ranges(kept)}"
    )
    for layer, value in enumerate(judged or ()):
        mark = "" if layer in kept else "  goes"
        report.detail(f"{STACKS[stack]} {layer}: {way} {value:.4f}{mark}")


def _say(
    report: Report, before: Checkpoint, after: Checkpoint, old: Mapping[str, int], new: Mapping[str, int]
) -> None:
    changed = ", ".join(f"{name} {old[name]} → {new[name]}" for name in old if new[name] != old[name])
    share = after.parameter_count / max(1, before.parameter_count)
    report.note(
        f"{changed or 'nothing to remove: all sizes are as they were'}; {after.parameter_count:,} of "
        f"{before.parameter_count:,} parameters stay ({share:.1%})"
    )


def _noted(
    options: Prune,
    before: Checkpoint,
    after: Checkpoint,
    layers: Mapping[str, Any],
    old: Mapping[str, int],
    new: Mapping[str, int],
) -> Checkpoint:
    """Say in config.json what was removed; a model of the same size stays as it is."""
    changed = {name: old[name] for name in old if new[name] != old[name]}
    note: dict[str, Any] = {"from": changed} if changed else {}
    if options.pattern is not None:
        note.update(sparsity=options.pattern.text, criterion=options.criterion)
    if not note:
        return after
    if layers:
        note["layers_kept"] = {stack: ranges(list(kept)) for stack, kept in layers.items()}
    earlier = before.config.get(NOTES)
    own = {**(earlier if isinstance(earlier, Mapping) else {}), "pruned": note}
    return replace(after, config={**after.config, NOTES: own})
