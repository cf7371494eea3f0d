"""The GPT-5.4 family and T5: encoder-decoders with relative positions.

Gated (T5 v1.1) or plain feed-forward, head of its own or tied to the embedding, stacks of unequal depth,
heads × key size free of the width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt54_convert.archs._table import (
    ENCODER,
    Architecture,
    Config,
    GgufKeys,
    Key,
    Shapes,
    Weight,
    integer,
    required,
)
from gpt54_convert.errors import UnsupportedError

# llama.cpp's one and only distance beyond which all positions share a bucket.
MAX_DISTANCE = 128
CONTEXT = 512


def sizes(config: Config) -> dict[str, int]:
    layers, heads = required(config, "num_layers"), required(config, "num_heads")
    return {
        "encoder_layers": layers,
        "layers": required(config, "num_decoder_layers", layers),
        "width": required(config, "d_model"),
        "ffn": required(config, "d_ff"),
        "heads": heads,
        "kv_heads": heads,
        "head_dim": required(config, "d_kv"),
        "buckets": required(config, "relative_attention_num_buckets", 32),
        "vocab": required(config, "vocab_size"),
        "gated": int(_activation(config) == "gated-gelu"),
    }


def _activation(config: Config) -> str:
    return str(config.get("feed_forward_proj", "relu"))


def checks(config: Config) -> None:
    activation = _activation(config)
    if activation not in ("gated-gelu", "relu"):
        raise UnsupportedError(
            f"config.json: feed_forward_proj {activation!r} is not described (gated-gelu and relu are)"
        )
    if activation == "gated-gelu" and config.get("dense_act_fn", "gelu_new") != "gelu_new":
        raise UnsupportedError("config.json: only gelu_new is described as the gate of a T5")


def gguf_extra(config: Config) -> GgufKeys:
    size = sizes(config)
    distance = config.get("relative_attention_max_distance", MAX_DISTANCE)
    if distance != MAX_DISTANCE:
        raise UnsupportedError(
            f"config.json: relative_attention_max_distance {distance} cannot be told to llama.cpp, which "
            f"computes with {MAX_DISTANCE}"
        )
    if size["layers"] > size["encoder_layers"]:
        raise UnsupportedError(
            f"llama.cpp cannot load a T5 whose decoder ({size['layers']} layers) is deeper than its encoder "
            f"({size['encoder_layers']})"
        )
    epsilon = config.get("layer_norm_epsilon", 1e-6)
    return {
        "decoder_block_count": ("UINT32", size["layers"]),
        "attention.head_count_kv": ("UINT32", size["heads"]),
        "attention.key_length": ("UINT32", size["head_dim"]),
        "attention.value_length": ("UINT32", size["head_dim"]),
        "attention.layer_norm_epsilon": ("FLOAT32", epsilon),
        "decoder_start_token_id": ("UINT32", _start(config)),
    }


def _start(config: Config) -> int:
    start = config.get("decoder_start_token_id")
    pad = config.get("pad_token_id", 0)
    return int(start if start is not None else pad or 0)


def width_scales(config: Config) -> dict[str, float]:
    """A tied T5 multiplies the decoder's output by width**-0.5."""
    return {} if config.get("tie_word_embeddings") is False else {"norm.final": -0.5}


def gguf_scales(config: Config) -> dict[str, float]:
    """A tied T5 multiplies the decoder's output by width**-0.5; llama.cpp does not, so the norm does."""
    if config.get("tie_word_embeddings") is False:
        return {}
    return {"decoder.final_layer_norm.weight": float(required(config, "d_model")) ** -0.5}


def hf_extra(keys: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    width, heads = integer(keys, "embedding_length"), integer(keys, "attention.head_count")
    gated = "enc.blk.0.ffn_gate.weight" in shapes
    return {
        "num_decoder_layers": integer(keys, "decoder_block_count", integer(keys, "block_count")),
        "d_kv": integer(keys, "attention.key_length", width // heads),
        "relative_attention_max_distance": MAX_DISTANCE,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "dense_act_fn": "gelu_new" if gated else "relu",
        "is_gated_act": gated,
        "is_encoder_decoder": True,
        "decoder_start_token_id": integer(keys, "decoder_start_token_id", 0),
        "dropout_rate": 0.0,
    }


def _layer(decoder: bool) -> tuple[Weight, ...]:
    """The weights of one layer of either stack."""
    hf = ("decoder" if decoder else "encoder") + ".block.{i}.layer."
    gguf, role = ("dec.blk.{i}.", "") if decoder else ("enc.blk.{i}.", "enc.")
    stack = "layers" if decoder else ENCODER
    ffn = hf + ("2." if decoder else "1.")
    inner, matrix = ("heads*head_dim", "width"), ("ffn", "width")

    def weight(name: str, hf_name: str, gguf_name: str, shape: tuple[str, ...], **special: Any) -> Weight:
        return Weight(role + name, hf_name, gguf + gguf_name, shape, stack=stack, **special)

    def attend(name: str, module: str, prefix: str) -> tuple[Weight, ...]:
        return (
            weight(f"{name}.q", module + "q", prefix + "q", inner),
            weight(f"{name}.k", module + "k", prefix + "k", inner),
            weight(f"{name}.v", module + "v", prefix + "v", inner),
            weight(f"{name}.out", module + "o", prefix + "o", inner[::-1]),
        )

    bias = weight(
        "attn.rel_bias",
        hf + "0.SelfAttention.relative_attention_bias",
        "attn_rel_b",
        ("buckets", "heads"),
        only_first=True,
    )
    cross = (
        weight("norm.cross", hf + "1.layer_norm", "cross_attn_norm", ("width",)),
        *attend("cross", hf + "1.EncDecAttention.", "cross_attn_"),
    )
    return (
        weight("norm.attn", hf + "0.layer_norm", "attn_norm", ("width",)),
        *attend("attn", hf + "0.SelfAttention.", "attn_"),
        bias,
        *(cross if decoder else ()),
        weight("norm.ffn", ffn + "layer_norm", "ffn_norm", ("width",)),
        weight("ffn.gate", ffn + "DenseReluDense.wi_0", "ffn_gate", matrix, when="gated"),
        weight("ffn.up", ffn + "DenseReluDense.wi_1", "ffn_up", matrix, when="gated"),
        weight("ffn.up", ffn + "DenseReluDense.wi", "ffn_up", matrix, when="!gated"),
        weight("ffn.down", ffn + "DenseReluDense.wo", "ffn_down", matrix[::-1]),
    )


ARCHITECTURE = Architecture(
    name="gpt54",
    model_types=("t5", "mt5"),
    model_class="T5ForConditionalGeneration",
    gguf="t5",
    kind="encoder-decoder",
    sizes=sizes,
    weights=(
        Weight("embed", "shared", "token_embd", ("vocab", "width")),
        *_layer(decoder=False),
        Weight("enc.norm.final", "encoder.final_layer_norm", "enc.output_norm", ("width",)),
        *_layer(decoder=True),
        Weight("norm.final", "decoder.final_layer_norm", "dec.output_norm", ("width",)),
        Weight("head", "lm_head", "output", ("vocab", "width"), optional=True),
    ),
    keys=(
        Key("block_count", "num_layers"),
        Key("context_length", "n_positions", default=CONTEXT),
        Key("embedding_length", "d_model"),
        Key("feed_forward_length", "d_ff"),
        Key("attention.head_count", "num_heads"),
        Key("attention.layer_norm_rms_epsilon", "layer_norm_epsilon", "FLOAT32", default=1e-6),
        Key("attention.relative_buckets_count", "relative_attention_num_buckets", default=32),
        Key("vocab_size", "vocab_size"),
    ),
    size_keys={
        "encoder_layers": "num_layers",
        "layers": "num_decoder_layers",
        "width": "d_model",
        "ffn": "d_ff",
        "heads": "num_heads",
        "head_dim": "d_kv",
        "vocab": "vocab_size",
    },
    width_scales=width_scales,
    whole_heads=False,
    renames=((r"^(encoder|decoder)\.embed_tokens\.weight$", "shared.weight"),),
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    gguf_extra=gguf_extra,
    gguf_scales=gguf_scales,
    hf_extra=hf_extra,
    checks=checks,
)
