"""Llama and the models that share its code: mistral, SmolLM2, TinyLlama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.archs import _decoder, _rope
from gpt54_convert.archs._table import Architecture, Config, GgufKeys, Shapes


def gguf_extra(config: Config) -> GgufKeys:
    extra = _decoder.gguf_extra(config)
    if config.get("sliding_window"):  # llama.cpp does not read it for this architecture; see `caveats`
        extra["attention.sliding_window"] = ("UINT32", config["sliding_window"])
    return extra


def hf_extra(keys: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    extra = {**_decoder.hf_extra(keys), "hidden_act": "silu"}
    if "attention.sliding_window" in keys:
        window = keys["attention.sliding_window"]
        return {
            **extra,
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": window,
        }
    attention_bias, mlp_bias = "blk.0.attn_q.bias" in shapes, "blk.0.ffn_up.bias" in shapes
    return {**extra, "attention_bias": attention_bias, "mlp_bias": mlp_bias}


ARCHITECTURE = Architecture(
    name="llama",
    model_types=("llama", "mistral"),
    model_class="LlamaForCausalLM",
    gguf="llama",
    kind="decoder",
    sizes=_decoder.sizes,
    weights=(
        _decoder.EMBEDDING,
        _decoder.norm("norm.attn", "input_layernorm", "attn_norm"),
        *_decoder.attention(bias="maybe", out_bias="maybe", rope=True),
        _decoder.norm("norm.ffn", "post_attention_layernorm", "ffn_norm"),
        *_decoder.feed_forward(bias="maybe"),
        _decoder.final_norm(),
        _decoder.HEAD,
    ),
    keys=_decoder.KEYS,
    size_keys=_decoder.SIZE_KEYS,
    prefixes=_decoder.PREFIXES,
    ignored=_decoder.IGNORED,
    gguf_extra=gguf_extra,
    gguf_tensors=lambda config: _rope.frequency_factors(config, _decoder.sizes(config)["head_dim"]),
    hf_extra=hf_extra,
    caveats=lambda config: _decoder.window_caveat(config, config.get("sliding_window")),
    checks=lambda config: _decoder.check_activation(config, "hidden_act", ("silu", "swish")),
)
