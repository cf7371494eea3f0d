"""BERT encoders: learned positions and token types, norms after each step, no head in GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.archs._decoder import check_activation
from gpt54_convert.archs._table import Architecture, Config, GgufKeys, Key, Shapes, Weight, required
from gpt54_convert.errors import UnsupportedError

_HF, _GGUF = "bert.encoder.layer.{i}.", "blk.{i}."
# llama.h, enum llama_pooling_type: MEAN.  config.json does not tell how a sentence's vector is made of its
# tokens'; the mean is what sentence-transformers takes unless told otherwise.
_MEAN = 1
_INNER = ("heads*head_dim", "width")


def sizes(config: Config) -> dict[str, int]:
    width, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    return {
        "layers": required(config, "num_hidden_layers"),
        "width": width,
        "ffn": required(config, "intermediate_size"),
        "heads": heads,
        "head_dim": width // heads,
        "positions": required(config, "max_position_embeddings", 512),
        "types": required(config, "type_vocab_size", 2),
        "vocab": required(config, "vocab_size"),
    }


def checks(config: Config) -> None:
    check_activation(config, "hidden_act", ("gelu", "gelu_new", "gelu_pytorch_tanh"))
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UnsupportedError("config.json: BERT with relative positions is not described")
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise UnsupportedError("config.json: BERT as a decoder is not described")


def gguf_extra(config: Config) -> GgufKeys:
    return {
        "attention.causal": ("BOOL", False),
        "pooling_type": ("UINT32", _MEAN),
        "tokenizer.ggml.token_type_count": ("UINT32", sizes(config)["types"]),
    }


def hf_extra(keys: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    types = shapes.get("token_types.weight", (1,))[0]
    return {"type_vocab_size": types, "hidden_act": "gelu"}


def _norm(role: str, hf: str, gguf: str) -> Weight:
    return Weight(role, hf, gguf, ("width",), bias="yes")


def _linear(role: str, hf: str, gguf: str, shape: tuple[str, str]) -> Weight:
    return Weight(role, _HF + hf, _GGUF + gguf, shape, bias="yes")


ARCHITECTURE = Architecture(
    name="bert",
    model_types=("bert",),
    model_class="BertModel",
    gguf="bert",
    kind="encoder",
    sizes=sizes,
    weights=(
        Weight("embed", "bert.embeddings.word_embeddings", "token_embd", ("vocab", "width")),
        Weight(
            "embed.position", "bert.embeddings.position_embeddings", "position_embd", ("positions", "width")
        ),
        Weight("embed.type", "bert.embeddings.token_type_embeddings", "token_types", ("types", "width")),
        _norm("norm.embed", "bert.embeddings.LayerNorm", "token_embd_norm"),
        _linear("attn.q", "attention.self.query", "attn_q", _INNER),
        _linear("attn.k", "attention.self.key", "attn_k", _INNER),
        _linear("attn.v", "attention.self.value", "attn_v", _INNER),
        _linear("attn.out", "attention.output.dense", "attn_output", _INNER[::-1]),
        _norm("norm.post_attn", _HF + "attention.output.LayerNorm", _GGUF + "attn_output_norm"),
        _linear("ffn.up", "intermediate.dense", "ffn_up", ("ffn", "width")),
        _linear("ffn.down", "output.dense", "ffn_down", ("width", "ffn")),
        _norm("norm.post_ffn", _HF + "output.LayerNorm", _GGUF + "layer_output_norm"),
        Weight("pooler", "bert.pooler.dense", "", ("width", "width"), bias="maybe", optional=True),
    ),
    keys=(
        Key("block_count", "num_hidden_layers"),
        Key("context_length", "max_position_embeddings", default=512),
        Key("embedding_length", "hidden_size"),
        Key("feed_forward_length", "intermediate_size"),
        Key("attention.head_count", "num_attention_heads"),
        Key("attention.layer_norm_epsilon", "layer_norm_eps", "FLOAT32", default=1e-12),
        Key("vocab_size", "vocab_size"),
    ),
    size_keys={
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "ffn": "intermediate_size",
        "heads": "num_attention_heads",
        "vocab": "vocab_size",
    },
    prefixes=("-bert.",),
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    ignored=(r"(bert\.)?embeddings\.(position_ids|token_type_ids)",),
    gguf_dropped=(r"cls\..*",),
    gguf_extra=gguf_extra,
    hf_extra=hf_extra,
    checks=checks,
)
