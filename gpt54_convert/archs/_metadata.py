"""config.json and GGUF's metadata, in both directions, driven by an architecture's table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt54_convert.archs._table import Architecture, Config, Shapes, integer, number
from gpt54_convert.core.config import lookup
from gpt54_convert.errors import ConvertError, InputError

# Ours: config.json whole, for what GGUF has no key for (dropout, spelling, lists of end tokens).  Readers
# that do not know it skip it; we believe it only where it says the same as the keys that others read.
CONFIG_KEY = "gpt54_convert.config"
GENERATION_KEY = "gpt54_convert.generation_config"
# Ours: a vector's own values, where GGUF's are multiplied by `Architecture.gguf_scales`.
UNSCALED_KEY = "gpt54_convert.unscaled."
_PRIVATE = (
    "_name_or_path",
    "quantization_config",
    "torch_dtype",
    "dtype",
    "auto_map",
    "transformers_version",
)
_TOKEN_IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}

Keys = list[tuple[str, str, Any]]


def to_gguf(architecture: Architecture, config: Config) -> Keys:
    """Every key that says what the model is, under its full name: (name, type, value).

    Raises InputError where config.json lacks something, UnsupportedError for what llama.cpp cannot be told.
    """
    found: dict[str, tuple[str, Any]] = {}
    for key in architecture.keys:
        value = lookup(config, key.hf)
        value = key.default if value is None else value
        if value is None and not key.optional:
            name = key.hf.split("|", maxsplit=1)[0]
            raise InputError(f"config.json lacks {name!r}, which GGUF needs as {key.gguf}")
        if value is not None:
            found[key.gguf] = (key.type, value)
    found.update(architecture.gguf_extra(config))
    return [
        (_full(architecture, name), kind, _typed(name, kind, value)) for name, (kind, value) in found.items()
    ]


def _full(architecture: Architecture, name: str) -> str:
    return name if name.startswith("tokenizer.") else f"{architecture.gguf}.{name}"


def _typed(name: str, kind: str, value: Any) -> Any:
    """`value` checked against a scalar type; arrays are ours and pass."""
    if kind == "UINT32" and (not isinstance(value, int) or not 0 <= value < 1 << 32):
        raise InputError(f"config.json: {value!r:.40} is no whole number, but {name} must be one")
    if kind == "FLOAT32" and not isinstance(value, (int, float)):
        raise InputError(f"config.json: {value!r:.40} is no number, but {name} must be one")
    return float(value) if kind == "FLOAT32" else value


def own_keys(config: Config, generation_config: Config | None) -> Keys:
    """config.json and generation_config.json whole, without what is private to the source."""
    public = {key: value for key, value in config.items() if key not in _PRIVATE}
    keys: Keys = [(CONFIG_KEY, "STRING", _json(public))]
    if generation_config is not None:
        keys.append((GENERATION_KEY, "STRING", _json(generation_config)))
    return keys


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def to_config(architecture: Architecture, keys: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """config.json rebuilt: our own copy where it agrees with the keys, else from the keys alone.

    keys: all of the file's.  shapes: of its tensors, by GGUF name.
    Raises InputError where a key is missing or makes no sense.
    """
    embedding = shapes.get("token_embd.weight")
    if embedding is None:
        raise InputError(
            "tensor token_embd.weight is missing from the GGUF file; it may hold a vocabulary only"
        )
    own = _own_config(architecture, keys)
    if own is not None:
        return own
    short = {name.removeprefix(f"{architecture.gguf}."): value for name, value in keys.items()}
    short["vocab_size"] = embedding[0]
    config: dict[str, Any] = {
        "architectures": [architecture.model_class],
        "model_type": architecture.model_types[0],
    }
    for key in architecture.keys:
        name = key.hf.split("|", maxsplit=1)[0]
        if key.type == "UINT32":
            config[name] = integer(short, key.gguf, key.default)
        else:
            config[name] = number(short, key.gguf, key.default)
    config.update(architecture.hf_extra(short, shapes))
    if any(weight.role == "head" for weight in architecture.weights):
        config["tie_word_embeddings"] = "output.weight" not in shapes
    return {**config, **_token_ids(keys)}


def to_generation_config(config: Config, keys: Mapping[str, Any]) -> dict[str, Any] | None:
    """generation_config.json: our own copy, else the special tokens; None where there are none."""
    own = _parsed(keys.get(GENERATION_KEY))
    if own is not None or CONFIG_KEY in keys:
        return own
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return {name: config[name] for name in names if name in config} or None


def _token_ids(keys: Mapping[str, Any]) -> dict[str, int]:
    found = {name: keys.get(f"tokenizer.ggml.{other}_token_id") for name, other in _TOKEN_IDS.items()}
    return {f"{name}_token_id": value for name, value in found.items() if isinstance(value, int)}


def _own_config(architecture: Architecture, keys: Mapping[str, Any]) -> dict[str, Any] | None:
    config = _parsed(keys.get(CONFIG_KEY))
    if config is None or config.get("model_type") not in architecture.model_types:
        return None
    try:
        said = to_gguf(architecture, config)
    except (ConvertError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError):
        return None  # somebody changed it: the keys that every reader believes are enough
    agrees = all(_same(kind, value, keys.get(name)) for name, kind, value in said)
    more = {name for name in keys if name.startswith(f"{architecture.gguf}.")} - {name for name, *_ in said}
    return config if agrees and not more else None


def _same(kind: str, value: Any, found: Any) -> bool:
    if kind == "FLOAT32" and isinstance(found, float):
        return bool(np.float32(value) == np.float32(found))
    return bool(type(value) is type(found) and value == found)


def _parsed(text: Any) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
