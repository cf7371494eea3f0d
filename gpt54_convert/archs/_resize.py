"""config.json for the same model in other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt54_convert.archs._table import DECODER, Architecture, Config, Sizes
from gpt54_convert.core.config import lookup
from gpt54_convert.errors import UnsupportedError


def resized(
    architecture: Architecture, config: Config, sizes: Sizes, kept: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """`config` with these sizes; entries that already say so stay as they are.

    kept: by stack, the layers of the source that remain, in order: lists of one entry a layer follow them.
    Raises UnsupportedError where this architecture's config.json cannot say such sizes.
    """
    result = dict(config)
    _keep_layer_types(architecture, result, kept.get(DECODER))
    for name, keys in architecture.size_keys.items():
        if architecture.sizes(result)[name] != sizes[name]:
            present = [key for key in keys.split("|") if key in result]
            for key in present or [keys.split("|", maxsplit=1)[0]]:
                result[key] = sizes[name]
    found = architecture.sizes(result)
    for name in architecture.size_keys.keys() & {"heads", "kv_heads", "width"}:
        if found[name] != sizes[name]:
            raise UnsupportedError(f"{architecture.name}'s config.json cannot say {name} = {sizes[name]}")
    if found["head_dim"] != sizes["head_dim"]:
        raise UnsupportedError(
            f"{architecture.name} has heads × head_dim = width, but {sizes['heads']} × {sizes['head_dim']} "
            f"is not {sizes['width']}"
        )
    return result


def _keep_layer_types(architecture: Architecture, config: dict[str, Any], kept: Sequence[int] | None) -> None:
    """Local and global layers stay what they were, also where config.json only gave a rule for them."""
    types = architecture.layer_types(config)
    if kept is None or list(kept) == list(range(architecture.sizes(config)[DECODER])):
        return
    if types is not None:
        config["layer_types"] = [types[layer] for layer in kept]
        for rule in ("sliding_window_pattern", "_sliding_window_pattern"):
            config.pop(rule, None)  # the list says it, and the rule no longer holds
    limit = lookup(config, "max_window_layers")
    if isinstance(limit, int):
        config["max_window_layers"] = sum(layer < limit for layer in kept)
