"""Honest artifacts of every scheme pass: no gate and no check of weights may cry wolf."""

import pytest
import tiny

from gpt54_convert import data
from gpt54_convert.core.report import Report
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.pipeline import run
from gpt54_convert.quantize.schemes import SCHEMES
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe
from gpt54_convert.verify.verdict import FAIL, PASS

FLOATS = ("float32", "float16", "bfloat16")
CASES = [
    *(pytest.param(name, "safetensors", id=f"{name}-safetensors") for name in SCHEMES),
    *(pytest.param(name, "gguf", id=f"{name}-gguf", marks=pytest.mark.llama_cpp) for name in SCHEMES),
]


def verdict_of(model, scheme, container, output, method="search"):
    step = Convert(dtype=scheme) if scheme in FLOATS else Quantize(scheme=scheme, method=method)
    recipe = Recipe(model, step, Export(output=output, to=(container,), threads=1))
    try:
        return run(recipe, Report())[0].verdict
    except UnsupportedError:
        pytest.skip(f"{container} cannot hold {scheme} for this model")


@pytest.mark.parametrize(("scheme", "container"), CASES)
def test_the_embedded_model(scheme, container, tmp_path):
    verdict = verdict_of(data.model_path(), scheme, container, tmp_path)
    assert verdict.outcome == PASS, verdict.failures


@pytest.mark.parametrize("method", ["rtn", "search"])
@pytest.mark.parametrize("variant", ["llama", "qwen3", "gemma3", "gpt2", "bert", "gpt54"])
def test_tiny_models_without_a_runtime(variant, method, tmp_path, monkeypatch):
    """Random weights answer at random, so only config, tokenizer and weights are judged."""
    model = tiny.make(variant)[1]
    monkeypatch.setattr("gpt54_convert.verify.quick.RUN_WEIGHTS", 0)
    for scheme in ("int4", "q4_1", "q5_k_m", "float16"):
        verdict = verdict_of(model, scheme, "gguf", tmp_path / scheme, method)
        # GGUF cannot hold the normalizer of a T5 tokenizer without a character map: that is no false alarm.
        known = ("gpt54", "tokenizer")
        failed = [c for c in verdict.failures if c.outcome == FAIL and (variant, c.kind) != known]
        assert not failed, (scheme, failed)
