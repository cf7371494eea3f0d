"""Pruned models of every architecture in llama.cpp: it opens them and computes what transformers computes."""

import numpy as np
import pytest
import tiny
from peers import llama_runtime
from surgery import answers

from gpt54_convert import pipeline
from gpt54_convert.core.report import Report
from gpt54_convert.prune.step import Prune
from gpt54_convert.recipe import Convert, Export, Recipe

pytestmark = pytest.mark.llama_cpp
pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")

# What shrinks on top of the layers; qwen2 and those without a head size of their own keep heads × size = width.
SIZES = {
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
LAYERS = {"gemma3": 5}
GELU = ("gemma3", "gpt2", "bert", "gpt54", "gpt54-tied")


@pytest.mark.parametrize("kind", SIZES)
def test_llama_cpp_computes_the_same(kind, tmp_path):
    _, folder = tiny.make(kind)
    step = Prune(layers=LAYERS.get(kind, 1), layer_choice="even", importance="weights", **SIZES[kind])
    export = Export(output=tmp_path, to=("safetensors", "gguf"))
    made = pipeline.run(Recipe(folder, Convert(), export, (step,)), Report())
    (path,) = next(artifact.folder for artifact in made if artifact.container == "gguf").glob("*.gguf")
    reference = answers(tmp_path / "safetensors")
    tokens = torch.randint(5, 200, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    if kind.startswith("gpt54"):
        found = llama_runtime.seq2seq_logits(path, tokens, tokens[::-1])
    elif kind == "bert":
        found = llama_runtime.hidden(path, tokens)
    else:
        found = llama_runtime.logits(path, tokens)
    assert reference.std() > 0.1
    # ggml computes GELU through a table of float16; see tests/exporters/test_gguf_llama_cpp.py
    assert np.abs(reference - found).max() < (1.5e-2 if kind in GELU else 1e-4) * max(1, reference.std())
