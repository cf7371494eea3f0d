"""GPT-2: fused query-key-value, learned positions, transposed matrices (Conv1D), tied head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.archs._decoder import check_activation
from gpt54_convert.archs._table import Architecture, Config, Key, Shapes, Weight, integer, required
from gpt54_convert.errors import UnsupportedError

_HF, _GGUF = "transformer.h.{i}.", "blk.{i}."


def sizes(config: Config) -> dict[str, int]:
    width, heads = (
        required(config, "n_embd|hidden_size", 768),
        required(config, "n_head|num_attention_heads", 12),
    )
    return {
        "layers": required(config, "n_layer|num_hidden_layers", 12),
        "width": width,
        "ffn": required(config, "n_inner", 4 * width),
        "heads": heads,
        "head_dim": width // heads,
        "positions": required(config, "n_positions|n_ctx|max_position_embeddings", 1024),
        "vocab": required(config, "vocab_size", 50257),
    }


def checks(config: Config) -> None:
    check_activation(config, "activation_function", ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"))
    if config.get("scale_attn_weights") is False or config.get("scale_attn_by_inverse_layer_idx"):
        raise UnsupportedError("config.json: GPT-2's unusual scalings of attention are not described")
    if config.get("add_cross_attention"):
        raise UnsupportedError("config.json: GPT-2 with cross-attention is not described")


def hf_extra(keys: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    width, inner = integer(keys, "embedding_length"), integer(keys, "feed_forward_length")
    return {"n_inner": None if inner == 4 * width else inner, "activation_function": "gelu_new"}


def _norm(role: str, hf: str, gguf: str) -> Weight:
    return Weight(role, hf, gguf, ("width",), bias="yes")


def _matrix(role: str, hf: str, gguf: str, shape: tuple[str, str]) -> Weight:
    return Weight(role, _HF + hf, _GGUF + gguf, shape, bias="yes", conv1d=True)


ARCHITECTURE = Architecture(
    name="gpt2",
    model_types=("gpt2",),
    model_class="GPT2LMHeadModel",
    gguf="gpt2",
    kind="decoder",
    sizes=sizes,
    weights=(
        Weight("embed", "transformer.wte", "token_embd", ("vocab", "width")),
        Weight("embed.position", "transformer.wpe", "position_embd", ("positions", "width")),
        _norm("norm.attn", _HF + "ln_1", _GGUF + "attn_norm"),
        _matrix("attn.qkv", "attn.c_attn", "attn_qkv", ("3*heads*head_dim", "width")),
        _matrix("attn.out", "attn.c_proj", "attn_output", ("width", "heads*head_dim")),
        _norm("norm.ffn", _HF + "ln_2", _GGUF + "ffn_norm"),
        _matrix("ffn.up", "mlp.c_fc", "ffn_up", ("ffn", "width")),
        _matrix("ffn.down", "mlp.c_proj", "ffn_down", ("width", "ffn")),
        _norm("norm.final", "transformer.ln_f", "output_norm"),
        Weight("head", "lm_head", "output", ("vocab", "width"), optional=True),
    ),
    keys=(
        Key("block_count", "n_layer|num_hidden_layers", default=12),
        Key("context_length", "n_positions|n_ctx|max_position_embeddings", default=1024),
        Key("embedding_length", "n_embd|hidden_size", default=768),
        Key("attention.head_count", "n_head|num_attention_heads", default=12),
        Key("attention.layer_norm_epsilon", "layer_norm_epsilon", "FLOAT32", default=1e-5),
        Key("vocab_size", "vocab_size", default=50257),
    ),
    size_keys={
        "layers": "n_layer|num_hidden_layers",
        "width": "n_embd|hidden_size",
        "ffn": "n_inner",
        "heads": "n_head|num_attention_heads",
        "vocab": "vocab_size",
    },
    prefixes=("-transformer.",),
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    gguf_extra=lambda config: {"feed_forward_length": ("UINT32", sizes(config)["ffn"])},
    hf_extra=hf_extra,
    checks=checks,
    tied=True,
)
