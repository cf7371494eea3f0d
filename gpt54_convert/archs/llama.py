"""Llama and the models that share its code: mistral, SmolLM2, TinyLlama."""

from __future__ import annotations

from typing import Any

from gpt54_convert.archs._table import Architecture, Config, Key, Weight, required


def sizes(config: Config) -> dict[str, int]:
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


def gguf_extra(config: Config) -> dict[str, tuple[str, Any]]:
    size = sizes(config)
    extra: dict[str, tuple[str, Any]] = {
        "attention.key_length": ("UINT32", size["head_dim"]),
        "attention.value_length": ("UINT32", size["head_dim"]),
        "rope.dimension_count": ("UINT32", size["head_dim"]),
        "attention.head_count_kv": ("UINT32", size["kv_heads"]),
    }
    return extra


def hf_extra(keys: Any) -> dict[str, Any]:
    heads = keys["attention.head_count"]
    head_dim = keys.get("attention.key_length", keys["embedding_length"] // heads)
    return {
        "num_key_value_heads": keys.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
    }


ARCHITECTURE = Architecture(
    name="llama",
    model_types=("llama", "mistral"),
    model_class="LlamaForCausalLM",
    gguf="llama",
    kind="decoder",
    sizes=sizes,
    weights=(
        Weight("embed", "model.embed_tokens", "token_embd", ("vocab", "width")),
        Weight("norm.attn", "model.layers.{i}.input_layernorm", "blk.{i}.attn_norm", ("width",)),
        Weight(
            "attn.q",
            "model.layers.{i}.self_attn.q_proj",
            "blk.{i}.attn_q",
            ("heads*head_dim", "width"),
            bias="maybe",
            rope="heads",
        ),
        Weight(
            "attn.k",
            "model.layers.{i}.self_attn.k_proj",
            "blk.{i}.attn_k",
            ("kv_heads*head_dim", "width"),
            bias="maybe",
            rope="kv_heads",
        ),
        Weight(
            "attn.v",
            "model.layers.{i}.self_attn.v_proj",
            "blk.{i}.attn_v",
            ("kv_heads*head_dim", "width"),
            bias="maybe",
        ),
        Weight(
            "attn.out",
            "model.layers.{i}.self_attn.o_proj",
            "blk.{i}.attn_output",
            ("width", "heads*head_dim"),
            bias="maybe",
        ),
        Weight("norm.ffn", "model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm", ("width",)),
        Weight(
            "ffn.gate", "model.layers.{i}.mlp.gate_proj", "blk.{i}.ffn_gate", ("ffn", "width"), bias="maybe"
        ),
        Weight("ffn.up", "model.layers.{i}.mlp.up_proj", "blk.{i}.ffn_up", ("ffn", "width"), bias="maybe"),
        Weight(
            "ffn.down", "model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down", ("width", "ffn"), bias="maybe"
        ),
        Weight("norm.final", "model.norm", "output_norm", ("width",)),
        Weight("head", "lm_head", "output", ("vocab", "width"), optional=True),
    ),
    keys=(
        Key("block_count", "num_hidden_layers"),
        Key("context_length", "max_position_embeddings", default=2048),
        Key("embedding_length", "hidden_size"),
        Key("feed_forward_length", "intermediate_size"),
        Key("attention.head_count", "num_attention_heads"),
        Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "FLOAT32", default=1e-6),
        Key("rope.freq_base", "rope_theta|rope_parameters.rope_theta", "FLOAT32", default=10000.0),
        Key("vocab_size", "vocab_size"),
    ),
    ignored=(r".*rotary_emb\.inv_freq",),
    gguf_extra=gguf_extra,
    hf_extra=hf_extra,
)
