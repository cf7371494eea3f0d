"""Qwen 3: norms on the heads of query and key, no biases, head sizes free of the width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.archs import _decoder, qwen2
from gpt54_convert.archs._table import Architecture, Config, Shapes
from gpt54_convert.errors import UnsupportedError


def sizes(config: Config) -> dict[str, int]:
    return _decoder.sizes({"head_dim": 128, **config})


def checks(config: Config) -> None:
    _decoder.check_activation(config, "hidden_act", ("silu", "swish"))
    if config.get("attention_bias"):
        raise UnsupportedError("config.json: attention_bias is not described for qwen3 (no runtime reads it)")


def hf_extra(keys: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    return qwen2.hf_extra(keys, shapes)


ARCHITECTURE = Architecture(
    name="qwen3",
    model_types=("qwen3",),
    model_class="Qwen3ForCausalLM",
    gguf="qwen3",
    kind="decoder",
    sizes=sizes,
    weights=(
        _decoder.EMBEDDING,
        _decoder.norm("norm.attn", "input_layernorm", "attn_norm"),
        *_decoder.attention(),
        _decoder.norm("norm.q", "self_attn.q_norm", "attn_q_norm", "head_dim"),
        _decoder.norm("norm.k", "self_attn.k_norm", "attn_k_norm", "head_dim"),
        _decoder.norm("norm.ffn", "post_attention_layernorm", "ffn_norm"),
        *_decoder.feed_forward(),
        _decoder.final_norm(),
        _decoder.HEAD,
    ),
    keys=_decoder.KEYS,
    size_keys=_decoder.SIZE_KEYS,
    prefixes=_decoder.PREFIXES,
    ignored=_decoder.IGNORED,
    gguf_extra=lambda config: _decoder.gguf_extra({"head_dim": 128, **config}),
    hf_extra=hf_extra,
    caveats=qwen2.caveats,
    layer_types=qwen2.layer_types,
    checks=checks,
)
