"""What Llama-like decoders share: sizes, metadata, and most weights of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.archs import _rope
from gpt54_convert.archs._table import Config, GgufKeys, Key, Weight, integer, required
from gpt54_convert.errors import UnsupportedError

PREFIXES = ("-model.", "language_model.")
IGNORED = (r".*rotary_emb\.inv_freq",)
KEYS = (
    Key("block_count", "num_hidden_layers"),
    Key("context_length", "max_position_embeddings", default=2048),
    Key("embedding_length", "hidden_size"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "num_attention_heads"),
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "FLOAT32", default=1e-6),
    Key("vocab_size", "vocab_size"),
)
SIZE_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
}
EMBEDDING = Weight("embed", "model.embed_tokens", "token_embd", ("vocab", "width"))
HEAD = Weight("head", "lm_head", "output", ("vocab", "width"), optional=True)
_HF, _GGUF = "model.layers.{i}.", "blk.{i}."


def final_norm(plus_one: bool = False) -> Weight:
    """The norm before the head."""
    return Weight("norm.final", "model.norm", "output_norm", ("width",), plus_one=plus_one)


def norm(role: str, hf: str, gguf: str, size: str = "width", plus_one: bool = False) -> Weight:
    """A layer's norm; `hf` and `gguf` are its names within the layer."""
    return Weight(role, _HF + hf, _GGUF + gguf, (size,), plus_one=plus_one)


def attention(bias: str = "no", out_bias: str = "no", rope: bool = False) -> tuple[Weight, ...]:
    """Query, key, value and output; `rope`: ggml interleaves the rotary rows of query and key."""
    heads, kv_heads = ("heads", "kv_heads") if rope else ("", "")
    kv_shape = ("kv_heads*head_dim", "width")
    return (
        Weight(
            "attn.q",
            _HF + "self_attn.q_proj",
            _GGUF + "attn_q",
            ("heads*head_dim", "width"),
            bias=bias,
            rope=heads,
        ),
        Weight("attn.k", _HF + "self_attn.k_proj", _GGUF + "attn_k", kv_shape, bias=bias, rope=kv_heads),
        Weight("attn.v", _HF + "self_attn.v_proj", _GGUF + "attn_v", kv_shape, bias=bias),
        Weight(
            "attn.out",
            _HF + "self_attn.o_proj",
            _GGUF + "attn_output",
            ("width", "heads*head_dim"),
            bias=out_bias,
        ),
    )


def feed_forward(bias: str = "no") -> tuple[Weight, ...]:
    """Gate, up and down."""
    return (
        Weight("ffn.gate", _HF + "mlp.gate_proj", _GGUF + "ffn_gate", ("ffn", "width"), bias=bias),
        Weight("ffn.up", _HF + "mlp.up_proj", _GGUF + "ffn_up", ("ffn", "width"), bias=bias),
        Weight("ffn.down", _HF + "mlp.down_proj", _GGUF + "ffn_down", ("width", "ffn"), bias=bias),
    )


def sizes(config: Config) -> dict[str, int]:
    """The sizes that shapes are made of; transformers' defaults where config.json leaves one out."""
    width, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    return {
        "layers": required(config, "num_hidden_layers"),
        "width": width,
        "ffn": required(config, "intermediate_size"),
        "heads": heads,
        "kv_heads": required(config, "num_key_value_heads", heads),
        "head_dim": required(config, "head_dim", width // heads),
        "vocab": required(config, "vocab_size"),
    }


def gguf_extra(config: Config) -> GgufKeys:
    """Heads and rotary embedding as llama.cpp reads them."""
    size = sizes(config)
    return {
        "attention.head_count_kv": ("UINT32", size["kv_heads"]),
        "attention.key_length": ("UINT32", size["head_dim"]),
        "attention.value_length": ("UINT32", size["head_dim"]),
        "rope.dimension_count": ("UINT32", size["head_dim"]),
        **_rope.to_gguf(config),
    }


def hf_extra(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `gguf_extra`."""
    heads = integer(keys, "attention.head_count")
    head_dim = integer(keys, "attention.key_length", integer(keys, "embedding_length") // heads)
    for other in ("attention.value_length", "rope.dimension_count"):
        if integer(keys, other, head_dim) != head_dim:
            raise UnsupportedError(
                f"the GGUF file has {other} {keys[other]} and attention.key_length {head_dim}; models with "
                "heads of several sizes or partial rotation are not described"
            )
    return {
        "num_key_value_heads": integer(keys, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        **_rope.from_gguf(keys, head_dim),
    }


def check_activation(config: Config, key: str, allowed: tuple[str, ...]) -> None:
    """Raise UnsupportedError for an activation that no described runtime computes."""
    found = config.get(key, allowed[0])
    if found not in allowed:
        raise UnsupportedError(
            f"config.json: {key} {found!r} is not described for this architecture (only {', '.join(allowed)})"
        )


def window_caveat(config: Config, window: Any) -> tuple[str, ...]:
    """What to say of a sliding window that llama.cpp does not apply for this architecture."""
    longest = config.get("max_position_embeddings")
    if not isinstance(window, int) or not isinstance(longest, int) or window >= longest:
        return ()
    return (
        f"llama.cpp ignores this model's sliding window: beyond {window} tokens of context its results "
        "differ from the original model's",
    )
