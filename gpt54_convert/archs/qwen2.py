"""Qwen 2 and 2.5: Llama with biases on query, key and value, and rotary rows as transformers has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.archs import _decoder
from gpt54_convert.archs._table import Architecture, Config, GgufKeys, Shapes
from gpt54_convert.errors import UnsupportedError


def gguf_extra(config: Config) -> GgufKeys:
    size = _decoder.sizes(config)
    if size["heads"] * size["head_dim"] != size["width"]:
        raise UnsupportedError(
            f"llama.cpp's qwen2 wants heads × head_dim = hidden_size, but {size['heads']} × "
            f"{size['head_dim']} is not {size['width']}"
        )
    return _decoder.gguf_extra(config)


def hf_extra(keys: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {**_decoder.hf_extra(keys), "hidden_act": "silu", "use_sliding_window": False}


def layer_types(config: Config) -> list[str] | None:
    """The last layers attend through a window, where one is used at all."""
    if config.get("layer_types"):
        return list(config["layer_types"])
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    if window is None:
        return None
    first = config.get("max_window_layers", 28)
    depth = _decoder.sizes(config)["layers"]
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(depth)]


def caveats(config: Config) -> tuple[str, ...]:
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    return _decoder.window_caveat(config, window)


ARCHITECTURE = Architecture(
    name="qwen2",
    model_types=("qwen2",),
    model_class="Qwen2ForCausalLM",
    gguf="qwen2",
    kind="decoder",
    sizes=_decoder.sizes,
    weights=(
        _decoder.EMBEDDING,
        _decoder.norm("norm.attn", "input_layernorm", "attn_norm"),
        *_decoder.attention(bias="yes"),
        _decoder.norm("norm.ffn", "post_attention_layernorm", "ffn_norm"),
        *_decoder.feed_forward(),
        _decoder.final_norm(),
        _decoder.HEAD,
    ),
    keys=_decoder.KEYS,
    size_keys=_decoder.SIZE_KEYS,
    prefixes=_decoder.PREFIXES,
    ignored=_decoder.IGNORED,
    gguf_extra=gguf_extra,
    hf_extra=hf_extra,
    caveats=caveats,
    layer_types=layer_types,
    checks=lambda config: _decoder.check_activation(config, "hidden_act", ("silu", "swish")),
)
