"""Rotary embeddings: transformers' two spellings of their parameters, and llama.cpp's keys.

transformers 5 nests everything in `rope_parameters`; before, there were `rope_theta` and `rope_scaling`,
which both versions read and which we write.  Sources: transformers' modeling_rope_utils.py; llama.cpp's
llama-model.cpp (load_hparams), llama-context.cpp (YaRN's attention factor) and, for `rope_freqs.weight`,
its conversion/llama.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.archs._table import Config, GgufKeys, integer, number, required
from gpt54_convert.errors import InputError, UnsupportedError

THETA = 10000.0
FREQUENCIES = "rope_freqs.weight"
# transformers' defaults of YaRN; llama.cpp reads others for no architecture described here.
_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
# The only values of Llama 3's form that models use; a file without our own key is recognised by them.
_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0


def parameters(config: Config, layer_type: str = "full_attention", theta: float = THETA) -> dict[str, Any]:
    """The rotary parameters in one form: `rope_type`, `rope_theta` and what else the type needs.

    layer_type: which of them where layers differ (gemma3).  theta: the architecture's own default base.
    """
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(found, Mapping):
        raise InputError("config.json: rope_scaling and rope_parameters must be objects; get it again")
    if "full_attention" in found or "sliding_attention" in found:
        found = found.get(layer_type) or {}
    nested = config.get("rope_parameters") or {}
    base = found.get("rope_theta", config.get("rope_theta", nested.get("rope_theta", theta)))
    kind = found.get("rope_type", found.get("type", "default"))
    partial = found.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1.0):
        raise UnsupportedError("config.json: partial_rotary_factor other than 1 is not described")
    return {**found, "rope_type": kind, "rope_theta": float(base)}


def to_gguf(config: Config, theta: float = THETA) -> GgufKeys:
    """The `rope.*` keys.  Raises UnsupportedError for what llama.cpp would compute differently."""
    rope = parameters(config, theta=theta)
    keys: GgufKeys = {"rope.freq_base": ("FLOAT32", rope["rope_theta"])}
    kind = rope["rope_type"]
    if kind in ("default", "llama3"):  # the latter has a tensor instead, see `frequency_factors`
        return keys
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(
            f"config.json: rope_type {kind!r} has no GGUF form here (default, linear, yarn and llama3 have)"
        )
    factor = float(required(rope, "factor"))
    keys["rope.scaling.type"] = ("STRING", kind)
    keys["rope.scaling.factor"] = ("FLOAT32", factor)
    return {**keys, **_yarn(config, rope, factor)} if kind == "yarn" else keys


def _yarn(config: Config, rope: Mapping[str, Any], factor: float) -> GgufKeys:
    for name, value in _YARN_DEFAULTS.items():
        if rope.get(name) not in (None, value):
            raise UnsupportedError(
                f"config.json: rope {name} {rope[name]} cannot be told to llama.cpp for this architecture "
                f"(it computes with {value})"
            )
    keys: GgufKeys = {"rope.scaling.original_context_length": ("UINT32", _original_length(config, rope))}
    attention = rope.get("attention_factor")
    if attention is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        attention = _scale(factor, rope["mscale"]) / _scale(factor, rope["mscale_all_dim"])
    if attention is not None:  # llama.cpp multiplies its own factor, YaRN's usual one, by this
        keys["rope.scaling.attn_factor"] = ("FLOAT32", float(attention) / _scale(factor))
    return keys


def _scale(factor: float, multiplier: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def _original_length(config: Config, rope: Mapping[str, Any]) -> int:
    own = config.get("original_max_position_embeddings")
    length = rope.get("original_max_position_embeddings") if own is None else own
    return int(required(config, "max_position_embeddings") if length is None else length)


def frequency_factors(config: Config, head_dim: int) -> dict[str, NDArray[np.float32]]:
    """Llama 3's scaling as the tensor that llama.cpp divides the frequencies by; nothing for other types."""
    rope = parameters(config)
    if rope["rope_type"] != "llama3":
        return {}
    low, high = float(required(rope, "low_freq_factor")), float(required(rope, "high_freq_factor"))
    factors = _llama3_factors(
        head_dim,
        rope["rope_theta"],
        float(required(rope, "factor")),
        low,
        high,
        _original_length(config, rope),
    )
    return {FREQUENCIES: factors.astype(np.float32)}


def _llama3_factors(
    head_dim: int, theta: float, factor: float, low: float, high: float, length: int
) -> NDArray[np.float64]:
    """By how much each frequency is slowed down: not at all for short waves, by `factor` for long ones."""
    turns = length * theta ** -(np.arange(0, head_dim, 2) / head_dim) / (2 * math.pi)  # in `length` tokens
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def from_gguf(keys: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """config.json's `rope_theta` and `rope_scaling` from the keys, or from the tensor `rope_freqs`."""
    theta = number(keys, "rope.freq_base", THETA)
    result: dict[str, Any] = {"rope_theta": theta}
    if keys.get("rope_freqs") is not None:
        result["rope_scaling"] = _recognise(np.asarray(keys["rope_freqs"]), theta, head_dim)
        return result
    factor = number(keys, "rope.scaling.factor", number(keys, "rope.scale_linear", 0.0))
    kind = keys.get("rope.scaling.type", "linear" if factor else "none")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return result
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(f"the GGUF file scales rotary embeddings by {kind!r}, which is not described")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = integer(
            keys, "rope.scaling.original_context_length", integer(keys, "context_length")
        )
        if "rope.scaling.attn_factor" in keys:
            scaling["attention_factor"] = number(keys, "rope.scaling.attn_factor") * _scale(factor)
    return {**result, "rope_scaling": scaling}


def _recognise(factors: NDArray[Any], theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's parameters behind a tensor of frequency factors, if there are any that give it."""
    largest = float(factors.max(initial=0.0))
    for power in range(6, 21):
        expected = _llama3_factors(head_dim, theta, largest, _LLAMA3_LOW, _LLAMA3_HIGH, 1 << power)
        if factors.shape == expected.shape and np.allclose(factors, expected, rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3",
                "factor": _short(largest),
                "low_freq_factor": _LLAMA3_LOW,
                "high_freq_factor": _LLAMA3_HIGH,
                "original_max_position_embeddings": 1 << power,
            }
    raise UnsupportedError(
        f"tensor {FREQUENCIES} does not have the form of Llama 3's rope scaling, and config.json can say "
        "nothing else; convert from the original model instead"
    )


def _short(value: float) -> float:
    return float(str(np.float32(value)))
