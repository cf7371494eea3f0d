"""Checkpoints of any size for benchmarks: Llama shapes, random bfloat16 weights, written by streaming."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

# parameters in billions -> (width, ffn, layers, heads, kv_heads); rows divide by 256 as in real models
SHAPES = {
    "0.1": (768, 2048, 12, 12, 4),
    "0.2": (1024, 2816, 12, 16, 8),
    "0.5": (1024, 4096, 28, 16, 8),
    "1": (2048, 5632, 22, 32, 4),
    "3": (3072, 8192, 28, 24, 8),
    "7": (4096, 11008, 32, 32, 32),
}
VOCABULARY = 32_000
_PATTERN = 1 << 23  # elements; repeated with a shift, so that no two tensors are alike


def _shapes(size: str, vocabulary: int) -> dict[str, tuple[int, ...]]:
    width, ffn, layers, heads, kv_heads = SHAPES[size]
    kv = width // heads * kv_heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(layers):
        stem = f"model.layers.{i}."
        found |= {
            stem + "input_layernorm.weight": (width,),
            stem + "self_attn.q_proj.weight": (width, width),
            stem + "self_attn.k_proj.weight": (kv, width),
            stem + "self_attn.v_proj.weight": (kv, width),
            stem + "self_attn.o_proj.weight": (width, width),
            stem + "post_attention_layernorm.weight": (width,),
            stem + "mlp.gate_proj.weight": (ffn, width),
            stem + "mlp.up_proj.weight": (ffn, width),
            stem + "mlp.down_proj.weight": (width, ffn),
        }
    return {**found, "model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def write(size: str, folder: Path, seed: int = 0, vocabulary: int = VOCABULARY) -> int:
    """A model folder of about `size` billion parameters (a key of SHAPES); returns its parameter count."""
    width, ffn, layers, heads, kv_heads = SHAPES[size]
    _, small = tiny.make("llama")
    shutil.copytree(small, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "vocab_size": vocabulary,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    header, offset = {}, 0
    for name, shape in _shapes(size, vocabulary).items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    values = np.random.default_rng(seed).standard_t(6, _PATTERN).astype(np.float32) * 0.02
    pattern = (values.view(np.uint32) >> 16).astype(np.uint16)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left, shift = offset // 2, 0
        while left:
            part = np.roll(pattern, shift)[: min(left, _PATTERN)]
            file.write(part.tobytes())
            left, shift = left - len(part), shift + 10_007
    return offset // 2
