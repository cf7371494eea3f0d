"""The GPT-5.4 family: the shapes of its tiers, at any scale, and who has one of them.

No weights of it are public.  Layers, widths and totals are given; the rest is chosen so that totals agree
within 0.5 % (T5 v1.1: gated GELU, relative positions, a head of its own).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

VOCABULARY, KEY_SIZE = 200_064, 64


@dataclass(frozen=True)
class Tier:
    """One size of the family.

    layers: of each stack.  total: parameters, as given.  layer_ratio, width_ratio: relative to full; the same
    ratios are what `prune --tier` means for any model.
    """

    name: str
    layers: int
    width: int
    heads: int
    ffn: int
    total: int
    layer_ratio: Fraction
    width_ratio: Fraction

    def sizes(self, scale: Fraction = Fraction(1)) -> dict[str, int]:
        """Its sizes with widths, key size, ffn and vocabulary scaled; layers and heads stay.

        Raises ValueError where one of them would not be whole.
        """
        scaled = {
            "width": self.width * scale,
            "ffn": self.ffn * scale,
            "head_dim": KEY_SIZE * scale,
            "vocab": VOCABULARY * scale,
        }
        for name, value in scaled.items():
            if value.denominator != 1 or value < 1:
                raise ValueError(f"{name} would be {float(value):g}")
        whole = {name: int(value) for name, value in scaled.items()}
        return {**whole, "encoder_layers": self.layers, "layers": self.layers, "heads": self.heads}


TIERS = {
    tier.name: tier
    for tier in (
        Tier("full", 24, 2048, 32, 15_872, 6_700_000_000, Fraction(1), Fraction(1)),
        Tier("mini", 12, 1280, 20, 6_016, 1_300_000_000, Fraction(1, 2), Fraction(5, 8)),
        Tier("nano", 6, 640, 10, 10_240, 520_000_000, Fraction(1, 4), Fraction(5, 16)),
    )
}


def recognise(architecture: str | None, sizes: Mapping[str, int]) -> tuple[Tier, Fraction] | None:
    """The tier that has these sizes, and its scale; None where there is none.  The vocabulary may differ."""
    if architecture != "gpt54":
        return None
    for tier in TIERS.values():
        scale = Fraction(sizes["width"], tier.width)
        try:
            wanted = tier.sizes(scale)
        except ValueError:
            continue
        if all(sizes[name] == size for name, size in wanted.items() if name != "vocab"):
            return tier, scale
    return None


def config(tier: Tier, scale: Fraction) -> dict[str, Any]:
    """config.json of a tier."""
    sizes = tier.sizes(scale)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": sizes["vocab"],
        "d_model": sizes["width"],
        "d_kv": sizes["head_dim"],
        "d_ff": sizes["ffn"],
        "num_heads": sizes["heads"],
        "num_layers": sizes["encoder_layers"],
        "num_decoder_layers": sizes["layers"],
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0,
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "use_cache": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
