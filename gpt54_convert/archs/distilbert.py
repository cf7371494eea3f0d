"""DistilBERT: BERT without token types and pooler, under names of its own.

transformers computes it; a GGUF file has no way to say it, since BERT's wants a table of token types.
"""

from __future__ import annotations

from gpt54_convert.archs._decoder import check_activation
from gpt54_convert.archs._table import Architecture, Config, Weight, required

_HF = "distilbert.transformer.layer.{i}."
_INNER = ("heads*head_dim", "width")


def sizes(config: Config) -> dict[str, int]:
    width, heads = (
        required(config, "dim|hidden_size", 768),
        required(config, "n_heads|num_attention_heads", 12),
    )
    return {
        "layers": required(config, "n_layers|num_hidden_layers", 6),
        "width": width,
        "ffn": required(config, "hidden_dim", 3072),
        "heads": heads,
        "head_dim": width // heads,
        "positions": required(config, "max_position_embeddings", 512),
        "vocab": required(config, "vocab_size"),
    }


def checks(config: Config) -> None:
    check_activation(config, "activation", ("gelu", "relu"))


def _norm(role: str, hf: str) -> Weight:
    return Weight(role, hf, "", ("width",), bias="yes")


def _linear(role: str, hf: str, shape: tuple[str, str]) -> Weight:
    return Weight(role, _HF + hf, "", shape, bias="yes")


ARCHITECTURE = Architecture(
    name="distilbert",
    model_types=("distilbert",),
    model_class="DistilBertModel",
    gguf="",
    kind="encoder",
    sizes=sizes,
    weights=(
        Weight("embed", "distilbert.embeddings.word_embeddings", "", ("vocab", "width")),
        Weight("embed.position", "distilbert.embeddings.position_embeddings", "", ("positions", "width")),
        _norm("norm.embed", "distilbert.embeddings.LayerNorm"),
        _linear("attn.q", "attention.q_lin", _INNER),
        _linear("attn.k", "attention.k_lin", _INNER),
        _linear("attn.v", "attention.v_lin", _INNER),
        _linear("attn.out", "attention.out_lin", _INNER[::-1]),
        _norm("norm.post_attn", _HF + "sa_layer_norm"),
        _linear("ffn.up", "ffn.lin1", ("ffn", "width")),
        _linear("ffn.down", "ffn.lin2", ("width", "ffn")),
        _norm("norm.post_ffn", _HF + "output_layer_norm"),
    ),
    keys=(),
    size_keys={
        "layers": "n_layers|num_hidden_layers",
        "width": "dim|hidden_size",
        "ffn": "hidden_dim",
        "heads": "n_heads|num_attention_heads",
        "vocab": "vocab_size",
    },
    prefixes=("-distilbert.",),
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    ignored=(r"(distilbert\.)?embeddings\.position_ids",),
    checks=checks,
)
