"""What a checkpoint is, from its headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert import archs, data
from gpt54_convert.archs import Architecture
from gpt54_convert.archs import _family as family
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.loaders._folder import read_json
from gpt54_convert.prune.targets import scaled_sizes
from gpt54_convert.quantize.assign import place


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Architecture, sizes, storage and every tensor, as one JSON-able object; sizes in bytes."""
    architecture = archs.by_name(checkpoint.architecture) if checkpoint.architecture else None
    tensors = [
        {
            "name": name,
            "role": place(checkpoint, name).role,
            "grid": tensor.stored_as,
            "shape": list(tensor.shape),
            "size_bytes": tensor.source_bytes,
        }
        for name, tensor in checkpoint.tensors.items()
    ]
    size = sum(tensor.source_bytes for tensor in checkpoint.tensors.values())
    return {
        "schema": "gpt54-convert/inspect/1",
        "path": str(checkpoint.source.path),
        "container": checkpoint.source.container,
        "architecture": checkpoint.architecture,
        "kind": architecture.kind if architecture else None,
        "model_type": checkpoint.config.get("model_type"),
        "parameters": checkpoint.parameter_count,
        "size_bytes": size,
        "bits_per_weight": round(8 * size / max(1, checkpoint.parameter_count), 4),
        "family": _family(checkpoint, architecture),
        "weights": _weights(checkpoint),
        "sizes": architecture.sizes(checkpoint.config) if architecture else {},
        "tokenizer": _tokenizer(checkpoint),
        "grids": _grids(checkpoint),
        "tensors": tensors,
    }


def _family(checkpoint: Checkpoint, architecture: Architecture | None) -> dict[str, Any] | None:
    """The tier of the GPT-5.4 family that has this shape, and its scale; None where there is none."""
    if architecture is None or architecture.name != "gpt54":
        return None
    sizes = architecture.sizes(checkpoint.config)
    found = family.recognise(architecture.name, sizes)
    if found:
        return {"of": "GPT-5.4", "tier": found[0].name, "scale": str(found[1])}
    teacher = architecture.sizes(read_json(data.model_path() / "config.json"))
    for tier in family.TIERS.values():
        if sizes == scaled_sizes(architecture, teacher, tier.layer_ratio, tier.width_ratio):
            return {"of": "the embedded model", "tier": tier.name, "scale": "1"}
    return None


def _weights(checkpoint: Checkpoint) -> str | None:
    """What config.json says of the weights' history: `random`, `pruned`; None where it says nothing."""
    own = checkpoint.config.get("gpt54_convert")
    if not isinstance(own, Mapping):
        return None
    words = (
        ("random", own.get("weights") == "random"),
        *((word, word in own) for word in ("pruned", "mapped", "distilled")),
    )
    return ", ".join(word for word, applies in words if applies) or None


def _tokenizer(checkpoint: Checkpoint) -> str:
    """Where the tokenizer is; that of a GGUF file is not rebuilt just to be looked at."""
    if not checkpoint.tokenizer:
        return "none"
    if checkpoint.source.container == "gguf":
        return "in the GGUF file"
    return ", ".join(sorted(checkpoint.tokenizer))


def _grids(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for tensor in checkpoint.tensors.values():
        row = found.setdefault(
            tensor.stored_as, {"grid": tensor.stored_as, "tensors": 0, "weights": 0, "size_bytes": 0}
        )
        row["tensors"] += 1
        row["weights"] += tensor.size
        row["size_bytes"] += tensor.source_bytes
    for row in found.values():
        row["bits_per_weight"] = round(8 * row["size_bytes"] / max(1, row["weights"]), 4)
    return sorted(found.values(), key=lambda row: -row["size_bytes"])
