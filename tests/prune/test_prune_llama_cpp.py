"""Pruned models of every architecture in llama.cpp: it opens them and computes what transformers computes."""

import numpy as np
import pytest
import tiny
from peers import llama_runtime
from surgery import SMALLER, answers, smaller

from gpt54_convert import pipeline
from gpt54_convert.core.report import Report
from gpt54_convert.prune.step import Prune
from gpt54_convert.recipe import Convert, Export, Recipe

pytestmark = pytest.mark.llama_cpp
pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")

GELU = ("gemma3", "gpt2", "bert", "gpt54", "gpt54-tied")


@pytest.mark.parametrize("kind", SMALLER)
def test_llama_cpp_computes_the_same(kind, tmp_path):
    _, folder = tiny.make(kind)
    export = Export(output=tmp_path, to=("safetensors", "gguf"))
    made = pipeline.run(Recipe(folder, Convert(), export, (Prune(**smaller(kind)),)), Report())
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
