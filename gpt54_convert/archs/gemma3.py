"""Gemma 3 (text): norms stored less one, local and global layers, scaled embedding, tied head.

The embedding's scale √width is applied by every runtime itself; the stored rows are unscaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.archs import _decoder, _rope
from gpt54_convert.archs._table import Architecture, Config, GgufKeys, Key, Shapes, integer, number
from gpt54_convert.errors import UnsupportedError

GLOBAL_THETA, LOCAL_THETA, WINDOW, PERIOD = 1e6, 1e4, 4096, 6
# llama.cpp tells the 27 B model, whose attention is scaled by width / heads, by its depth.
_LAYERS_27B = 62
# transformers' Gemma3TextConfig, where config.json leaves an entry out
_DEFAULTS = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "vocab_size": 262208,
}


def sizes(config: Config) -> dict[str, int]:
    return _decoder.sizes({**_DEFAULTS, **config})


def checks(config: Config) -> None:
    _decoder.check_activation(config, "hidden_activation", ("gelu_pytorch_tanh",))
    for key in ("attention_bias", "attn_logit_softcapping", "use_bidirectional_attention"):
        if config.get(key):
            raise UnsupportedError(f"config.json: {key} is not described for gemma3")


def layer_types(config: Config) -> list[bool]:
    """Of each layer, whether it attends locally (through the sliding window)."""
    depth, types = sizes(config)["layers"], config.get("layer_types")
    if types:
        return [kind == "sliding_attention" for kind in types]
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or PERIOD
    return _periodic(depth, period)


def type_names(local: list[bool]) -> list[str]:
    """What config.json calls local and global layers."""
    return ["sliding_attention" if each else "full_attention" for each in local]


def _periodic(depth: int, period: int) -> list[bool]:
    return [bool((layer + 1) % period) for layer in range(depth)]


def gguf_extra(config: Config) -> GgufKeys:
    size = sizes(config)
    _check_scale(config, size)
    local = layer_types(config)
    window = config.get("sliding_window", WINDOW)
    if len(local) != size["layers"] or (any(local) and not window):
        raise UnsupportedError("config.json: layer_types and sliding_window do not fit the number of layers")
    extra = _decoder.gguf_extra({**_DEFAULTS, "rope_theta": GLOBAL_THETA, **config})
    extra["rope.freq_base_swa"] = ("FLOAT32", _local_theta(config))
    if any(local):  # without a window llama.cpp makes all layers global
        extra["attention.sliding_window"] = ("UINT32", window)
    if any(local) and local != _periodic(size["layers"], PERIOD):
        extra["attention.sliding_window_pattern"] = ("ARRAY:BOOL", local)
    if config.get("final_logit_softcapping"):
        extra["final_logit_softcapping"] = ("FLOAT32", config["final_logit_softcapping"])
    return extra


def _check_scale(config: Config, size: Mapping[str, int]) -> None:
    scalar = config.get("query_pre_attn_scalar", 256)
    runtime = size["width"] // size["heads"] if size["layers"] == _LAYERS_27B else size["head_dim"]
    if scalar != runtime:
        raise UnsupportedError(
            f"config.json: query_pre_attn_scalar {scalar} cannot be told to llama.cpp, which scales this "
            f"model's attention by {runtime}"
        )


def _local_theta(config: Config) -> float:
    if "rope_local_base_freq" in config:
        return float(config["rope_local_base_freq"])
    nested = config.get("rope_parameters") or {}
    if "sliding_attention" not in nested:
        return LOCAL_THETA
    rope = _rope.parameters({"rope_parameters": nested}, "sliding_attention", LOCAL_THETA)
    if rope["rope_type"] != "default":
        raise UnsupportedError("config.json: scaled rotary embeddings of local layers have no GGUF form")
    return float(rope["rope_theta"])


def hf_extra(keys: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    depth = integer(keys, "block_count")
    extra = _decoder.hf_extra({"rope.freq_base": GLOBAL_THETA, **keys})
    # llama.cpp's own default is 10000 where the key is missing, as in files older than it
    extra["rope_local_base_freq"] = number(keys, "rope.freq_base_swa", LOCAL_THETA)
    window = integer(keys, "attention.sliding_window", 0)
    pattern = keys.get("attention.sliding_window_pattern", PERIOD)
    local = _periodic(depth, pattern) if isinstance(pattern, int) else [bool(each) for each in pattern]
    if not window:
        local = [False] * depth
    heads, width = integer(keys, "attention.head_count"), integer(keys, "embedding_length")
    return {
        **extra,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": window or WINDOW,
        "layer_types": type_names(local),
        "query_pre_attn_scalar": width // heads if depth == _LAYERS_27B else extra["head_dim"],
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
    }


ARCHITECTURE = Architecture(
    name="gemma3",
    model_types=("gemma3_text",),
    model_class="Gemma3ForCausalLM",
    gguf="gemma3",
    kind="decoder",
    sizes=sizes,
    weights=(
        _decoder.EMBEDDING,
        _decoder.norm("norm.attn", "input_layernorm", "attn_norm", plus_one=True),
        *_decoder.attention(),
        _decoder.norm("norm.q", "self_attn.q_norm", "attn_q_norm", "head_dim", plus_one=True),
        _decoder.norm("norm.k", "self_attn.k_norm", "attn_k_norm", "head_dim", plus_one=True),
        _decoder.norm("norm.post_attn", "post_attention_layernorm", "post_attention_norm", plus_one=True),
        _decoder.norm("norm.ffn", "pre_feedforward_layernorm", "ffn_norm", plus_one=True),
        *_decoder.feed_forward(),
        _decoder.norm("norm.post_ffn", "post_feedforward_layernorm", "post_ffw_norm", plus_one=True),
        _decoder.final_norm(plus_one=True),
        _decoder.HEAD,
    ),
    keys=tuple(Key(key.gguf, key.hf, key.type, _DEFAULTS.get(key.hf, key.default)) for key in _decoder.KEYS),
    size_keys=_decoder.SIZE_KEYS,
    prefixes=_decoder.PREFIXES,
    ignored=_decoder.IGNORED,
    gguf_extra=gguf_extra,
    hf_extra=hf_extra,
    checks=checks,
    tied=True,
    layer_types=lambda config: type_names(layer_types(config)),
    width_scales=lambda config: {"embed": 0.5},
)
