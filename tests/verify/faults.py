"""Faults as converters make them, put into a model's folder or into a finished artifact.

`SOURCE` faults change a copy of the model's folder; exporting that copy gives an artifact with the fault in
any container.  `CODES` faults change a finished artifact's packed bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

LAYER = "model.layers.1."
Weights = dict[str, np.ndarray]
TokenizerChange = Callable[[dict[str, Any]], None]


def copy(folder: Path, target: Path, change: Callable[[Weights, dict[str, Any]], None]) -> Path:
    """A copy of a model folder with other weights and another config."""
    shutil.copytree(folder, target)
    weights, config = (
        load_file(target / "model.safetensors"),
        json.loads((target / "config.json").read_text()),
    )
    change(weights, config)
    weights = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    return target


def rope_permuted(weights: Weights, config: dict[str, Any]) -> None:
    for part, heads in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"])):
        name = f"{LAYER}self_attn.{part}_proj.weight"
        rows = weights[name]
        split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1)
        weights[name] = split.swapaxes(1, 2).reshape(rows.shape)


def heads_swapped(weights: Weights, config: dict[str, Any]) -> None:
    name = f"{LAYER}self_attn.q_proj.weight"
    heads = weights[name].reshape(config["num_attention_heads"], -1, weights[name].shape[1])
    weights[name] = heads[[1, 0, *range(2, len(heads))]].reshape(weights[name].shape)


def layers_swapped(weights: Weights, config: dict[str, Any]) -> None:
    del config
    for name in [name for name in weights if name.startswith(LAYER)]:
        other = name.replace(".1.", ".0.", 1)
        weights[name], weights[other] = weights[other], weights[name]


def norm_off_by_one(weights: Weights, config: dict[str, Any]) -> None:
    del config
    name = f"{LAYER}input_layernorm.weight"
    weights[name] = weights[name] + 1


def one_norm_value_off(weights: Weights, config: dict[str, Any]) -> None:
    del config
    weights[f"{LAYER}input_layernorm.weight"][3] += 1


def bias_dropped(weights: Weights, config: dict[str, Any]) -> None:
    del config
    del weights[f"{LAYER}self_attn.v_proj.bias"]


def head_tied(weights: Weights, config: dict[str, Any]) -> None:
    del weights["lm_head.weight"]
    config["tie_word_embeddings"] = True


def embedding_shifted(weights: Weights, config: dict[str, Any]) -> None:
    del config
    name = "model.embed_tokens.weight"
    weights[name] = np.roll(weights[name], 1, axis=0)


def rope_base_wrong(weights: Weights, config: dict[str, Any]) -> None:
    del weights
    parameters = config.get("rope_parameters") or config
    parameters["rope_theta"] = 10 * parameters.get("rope_theta", 10000.0)


def epsilon_wrong(weights: Weights, config: dict[str, Any]) -> None:
    del weights
    config["rms_norm_eps"] *= 100


def nan_in_a_norm(weights: Weights, config: dict[str, Any]) -> None:
    del config
    weights["model.norm.weight"][5] = np.nan


def t5_layers_swapped(weights: Weights, config: dict[str, Any]) -> None:
    del config
    for name in [name for name in weights if name.startswith("encoder.block.1.")]:
        other = name.replace(".1.", ".2.", 1)
        weights[name], weights[other] = weights[other], weights[name]


def t5_head_tied(weights: Weights, config: dict[str, Any]) -> None:
    del weights["lm_head.weight"]
    config["tie_word_embeddings"] = True


def t5_cross_heads_swapped(weights: Weights, config: dict[str, Any]) -> None:
    name = "decoder.block.1.layer.1.EncDecAttention.k.weight"
    heads = weights[name].reshape(config["num_heads"], -1, weights[name].shape[1])
    weights[name] = heads[[1, 0, *range(2, len(heads))]].reshape(weights[name].shape)


# fault -> (variant of tests/tiny.py, change, what the check of the first wrong tensor must say)
SOURCE: dict[str, tuple[str, Callable[[Weights, dict[str, Any]], None], str]] = {
    "rope rows permuted": ("llama", rope_permuted, "first attn.q of layer 1"),
    "two heads swapped": ("llama", heads_swapped, "first attn.q of layer 1"),
    "two layers swapped": ("llama", layers_swapped, "of layer 0"),
    "norm off by one": ("llama", norm_off_by_one, "first norm.attn of layer 1"),
    "one norm value off by one": ("llama", one_norm_value_off, "first norm.attn of layer 1"),
    "bias dropped": ("llama-bias", bias_dropped, "first attn.v.bias of layer 1"),
    "head tied": ("llama", head_tied, "first head"),
    "embedding shifted by a row": ("llama", embedding_shifted, "first embed"),
    "rope base wrong": ("llama", rope_base_wrong, ""),
    "norm epsilon wrong": ("llama", epsilon_wrong, ""),
    "NaN in a norm": ("llama", nan_in_a_norm, "first norm.final"),
    "T5: two encoder layers swapped": ("gpt54", t5_layers_swapped, "of layer 1"),
    "T5: head tied": ("gpt54", t5_head_tied, "first head"),
    "T5: two cross-attention heads swapped": ("gpt54", t5_cross_heads_swapped, "first cross.k of layer 1"),
}


def merge_missing(tokenizer: dict[str, Any]) -> None:
    """One merge, and not a frequent one."""
    merges = tokenizer["model"]["merges"]
    del merges[len(merges) * 3 // 4]


def bos_twice(tokenizer: dict[str, Any]) -> None:
    for template in _templates(tokenizer["post_processor"]):
        for form in ("single", "pair"):
            template[form].insert(0, dict(template[form][0]))


def _templates(processor: dict[str, Any]) -> list[dict[str, Any]]:
    found = processor.get("processors", [processor])
    return [part for part in found if part["type"] == "TemplateProcessing"]


def no_bos(tokenizer: dict[str, Any]) -> None:
    """The tokenizer of a model that wants none: whoever adds one puts it twice before a chat's own."""
    for template in _templates(tokenizer["post_processor"]):
        for form in ("single", "pair"):
            template[form] = [part for part in template[form] if "Sequence" in part]
        template["special_tokens"] = {}


def nothing(tokenizer: dict[str, Any]) -> None:
    del tokenizer


# fault -> (change of the good model's tokenizer, change of the artifact's)
TOKENIZER: dict[str, tuple[TokenizerChange, TokenizerChange]] = {
    "merge missing": (nothing, merge_missing),
    "BOS twice": (nothing, bos_twice),
    "BOS added where none belongs": (no_bos, nothing),
}
CANNOT_SAY = {("BOS twice", "gguf")}  # the file has a flag for one, and no more


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


# Codes: (bytes of 4-bit codes, two a byte; float16 scales) -> the same, changed in place.
def scale_doubled(codes: np.ndarray, scales: np.ndarray) -> None:
    del codes
    scales.reshape(-1)[7] *= 2


def offset_off_by_one(codes: np.ndarray, scales: np.ndarray) -> None:
    """As if every code were counted from one level higher (15 stays)."""
    del scales
    low, high = codes & 15, codes >> 4
    codes[...] = np.minimum(low + 1, 15) | (np.minimum(high + 1, 15) << 4)


def nibbles_swapped(codes: np.ndarray, scales: np.ndarray) -> None:
    del scales
    codes[...] = (codes >> 4) | ((codes & 15) << 4)


def nan_scale(codes: np.ndarray, scales: np.ndarray) -> None:
    del codes
    scales.reshape(-1)[11] = np.nan


CODES: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "one group's scale doubled": scale_doubled,
    "offset off by one level": offset_off_by_one,
    "nibble order swapped": nibbles_swapped,
    "NaN in a scale": nan_scale,
}
DOWN = f"{LAYER}mlp.down_proj.weight"


def change_codes(folder: Path, container: str, change: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """Apply a CODES fault to layer 1's `ffn.down` in a finished int4 artifact; its manifest goes."""
    (folder / "manifest.json").unlink()
    if container == "safetensors":
        path = folder / "model.safetensors"
        weights = load_file(path)
        packed, scales = weights[f"{DOWN}_packed"], weights[f"{DOWN}_scale"]
        change(packed.view(np.uint8), scales)
        save_file(weights, path, metadata={"format": "pt"})
        return
    from gguf import GGUFReader

    path = next(folder.glob("*.gguf"))
    tensor = next(t for t in GGUFReader(path).tensors if t.name == "blk.1.ffn_down.weight")
    raw = np.memmap(path, np.uint8, "r+", int(tensor.data_offset), (int(tensor.n_bytes) // 18, 18))
    codes, scales = raw[:, 2:].copy(), raw[:, :2].copy().view(np.float16)
    change(codes, scales)
    raw[:, 2:], raw[:, :2] = codes, scales.view(np.uint8)
    raw.flush()
