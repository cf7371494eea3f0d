"""Zeroing parts of a saved model by the names that transformers gives them, without our tables."""

import json
import re
import shutil

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

OUT = r"(self_attn\.o_proj|attn\.c_proj|attention\.output\.dense|Attention\.o)\.(weight|bias)$"
DOWN = r"(mlp\.down_proj|mlp\.c_proj|layer\.\d+\.output\.dense|DenseReluDense\.wo)\.(weight|bias)$"
EMBED = r"(embed_tokens|wte|wpe|word_embeddings|position_embeddings|token_type_embeddings|shared)\.weight$"
NORM = r"(norm|LayerNorm|ln_\d|ln_f)\.(weight|bias)$"
LAYER = r"(?:layers|h|layer|block)\.(\d+)\."


class Surgery:
    """The tensors of a model folder, to be edited; `save` writes them to another folder."""

    def __init__(self, folder):
        self.folder = folder
        self.tensors = {name: value.copy() for name, value in load_file(folder / "model.safetensors").items()}
        self.config = json.loads((folder / "config.json").read_text())
        self.conv1d = self.config["model_type"] == "gpt2"

    def names(self, pattern):
        return [name for name in self.tensors if re.search(pattern, name)]

    def matrix(self, name):
        """A view [out, in], whatever the file's orientation."""
        value = self.tensors[name]
        return value.T if self.conv1d and value.ndim == 2 and not re.search(EMBED, name) else value

    def zero_layer(self, layer, side=""):
        """Make one layer (of the stack whose names hold `side`) add nothing."""
        for name in self.names(f"{OUT}|{DOWN}"):
            if int(re.search(LAYER, name)[1]) == layer and side in name:
                self.tensors[name][:] = 0

    def zero_inputs(self, pattern, columns):
        """Make the columns `columns(name)` of every matrix that matches add nothing."""
        for name in self.names(pattern):
            if name.endswith("weight"):
                self.matrix(name)[:, columns(name)] = 0

    def zero_channels(self, gone):
        """Make these channels of the hidden states zero for every input, and centre the others.

        Norms that subtract a mean see the same one then, with the channels or without.
        """
        kept = np.setdiff1d(np.arange(self.width), gone)
        for name in self.names(f"{OUT}|{DOWN}|{EMBED}"):
            rows = self.matrix(name)
            rows = rows.T if re.search(EMBED, name) else rows
            rows[gone] = 0
            if self.has_layer_norm:
                rows[kept] -= rows[kept].mean(0)
        for name in self.names(NORM) if self.has_layer_norm else ():
            value = self.tensors[name]
            if name.endswith("bias"):
                value[gone] = 0
            if self.config["model_type"] == "bert":  # its norms' outputs are the hidden states
                value[gone] = 0
                value[kept] = 0.9 if name.endswith("weight") else value[kept] - value[kept].mean()
        return kept

    def plain_norms(self):
        """Norms that do not change what is normed already, so that a layer of BERT can do nothing."""
        for name in self.names(NORM):
            self.tensors[name][:] = float(name.endswith("weight"))

    @property
    def has_layer_norm(self):
        return self.config["model_type"] in ("gpt2", "bert")

    @property
    def width(self):
        return self.config.get("hidden_size") or self.config.get("n_embd") or self.config["d_model"]

    def save(self, folder):
        shutil.copytree(self.folder, folder)
        save_file(self.tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder


def opened(folder):
    """The model as transformers opens it, with nothing missing or of another shape."""
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    if config.model_type == "bert":
        auto = transformers.AutoModel
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model, info = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["mismatched_keys"] and not [k for k in info["missing_keys"] if "pooler" not in k], info
    return model.eval()


def answers(folder, seed=1, length=40):
    """Logits (of an encoder the hidden states) that transformers computes for random tokens [time, …]."""
    model = opened(folder)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 200, (1, length), generator=generator)
    extra = {"decoder_input_ids": tokens.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        output = model(input_ids=tokens, **extra)
    found = output.last_hidden_state if model.config.model_type == "bert" else output.logits
    return found[0].numpy()


# What shrinks on top of the layers, for runtimes; qwen2, GPT-2 and BERT keep heads × size = width.
SMALLER = {
    "llama": {"width": 48, "ffn": 64, "heads": 2, "kv_heads": 1},
    "llama-bias": {"width": 48, "ffn": 64, "heads": 2, "kv_heads": 1},
    "mistral": {"width": 48, "ffn": 64, "heads": 4, "kv_heads": 2},
    "qwen2": {"width": 32, "ffn": 64, "heads": 2, "kv_heads": 2},
    "qwen3": {"width": 48, "ffn": 64, "heads": 2, "kv_heads": 1},
    "gemma3": {"width": 48, "ffn": 64, "heads": 2, "kv_heads": 1},
    "gpt2": {"width": 32, "ffn": 64},
    "bert": {"width": 36, "ffn": 64},
    "gpt54": {"width": 48, "ffn": 64, "heads": 2},
    "gpt54-tied": {"width": 48, "ffn": 64, "heads": 2},
}


def smaller(kind):
    """Options of `Prune` that shrink everything of a tiny model, without torch."""
    layers = 5 if kind == "gemma3" else 1
    return {"layers": layers, "layer_choice": "even", "importance": "weights", **SMALLER[kind]}
