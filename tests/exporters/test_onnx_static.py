"""Fixed scales of activations: what runs is what a naive loop computes with the ranges that it saw itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch
from click.testing import CliRunner
from hf_models import model_of
from safetensors.torch import load_file, save_file
from test_onnx_w8a8 import CHANGES, KIND_OF, naive

from gpt54_convert import data
from gpt54_convert.calibrate import text
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.cli import cli
from gpt54_convert.core.report import Report
from gpt54_convert.errors import UnsupportedError, UsageError
from gpt54_convert.exporters import onnx as exporter
from gpt54_convert.forward.batch import Document, stack
from gpt54_convert.forward.onnx_model import OnnxModel
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Export, Quantize, Recipe

SIZE = {"calibration_samples": 6, "calibration_length": 32}
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt54", "gpt2")]


class Notes(Report):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def made(kind: str) -> Path:
    changes = {"n_embd": 64, "n_head": 4} if kind == "gpt2" else CHANGES.get(kind, {})
    return tiny.make(kind, **changes)[1]


def static(source: Path, output: Path, *to: str, report: Report | None = None, **export: Any) -> Path:
    step = Quantize(scheme="w8a8", activations="static", **SIZE)
    run(Recipe(source, step, Export(output, to=to, **export)), report or Report())
    return output / "onnx"


def feed_of(kind: str, document: Document) -> dict[str, torch.Tensor]:
    tokens = torch.from_numpy(document.tokens)[None]
    if kind != "gpt54":
        return {"input_ids": tokens}
    return {"input_ids": torch.from_numpy(document.prefix)[None], "decoder_input_ids": tokens}


def documents(source: Path) -> list[Document]:
    return text.documents(data.text("calibration"), load(source), Calibration(**SIZE))


def seen(kind: str, source: Path) -> dict[str, tuple[float, float]]:
    """Tensor -> least and greatest value that enters its module, document by document."""
    found: dict[str, tuple[float, float]] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def look(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            low, high = found.get(name, (0.0, 0.0))
            found[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

        return look

    model, names = model_of(kind, source, dtype=torch.float32), load(source).tensors
    for path, module in model.named_modules():
        name = next((n for n in names if n.removeprefix("bert.") == f"{path}.weight"), None)
        if path == "lm_head" and name is None:
            name = "transformer.wte.weight"
        if name is not None and type(module).__name__ in ("Linear", "Conv1D"):
            module.register_forward_pre_hook(hook_of(name))
    with torch.no_grad():
        for document in documents(source):
            model(**feed_of(kind, document))
    return found


def by_range(low: float, high: float) -> Callable[..., Any]:
    """ONNX's QuantizeLinear and DequantizeLinear with the scale and zero point of a range."""
    scale = np.float32((high - low) / 255)
    zero = round(-low / float(scale))

    def entering(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        codes = torch.clamp(torch.round(inputs[0] / scale) + zero, 0, 255)
        return ((codes - zero) * scale,)

    return entering


def answer(found: Any) -> np.ndarray:
    return (found.logits if "logits" in found else found.last_hidden_state).numpy()


@pytest.mark.parametrize("kind", ["llama-bias", "bert", *SLOW])
def test_as_a_naive_loop(kind: str, tmp_path: Path) -> None:
    source = made(kind)
    folder = static(source, tmp_path, "onnx")
    ranges = seen(kind, source)
    rounded = naive(kind, source, lambda name: by_range(*ranges[name]))
    errors = []
    with OnnxModel(folder, KIND_OF[kind], 1) as model, torch.no_grad():
        for seed in range(5):
            row = np.random.default_rng(seed).integers(3, 190, 12)
            document = Document(row, row, row[:7] if kind == "gpt54" else None)
            exact, wanted = (answer(m(**feed_of(kind, document))) for m in (model_of(kind, source), rounded))
            size = np.square(exact).sum()
            rounding = np.square(wanted - exact).sum() / size
            assert 1e-7 < rounding < 0.2
            for in_two in (False, True):  # scales are the same whatever else is run: with a past too
                found = model.logits(stack([document], 0), in_two=in_two)
                errors.append(np.square(wanted - found).sum() / size / rounding)
    # A tie may fall either way, by the processor, and all tokens behind it hear of that.
    assert np.median(errors) < 1e-4 and max(errors) < 0.5
    graphs = [onnx.load(path, load_external_data=False).graph for path in folder.glob("*.onnx")]
    kinds = {node.op_type for graph in graphs for node in graph.node}
    assert "QuantizeLinear" in kinds and not kinds & {"DynamicQuantizeLinear", "MatMulNBits"}


LOOSE = "model.layers.1.mlp.down_proj.weight"


def stretched(folder: Path) -> Path:
    """A llama in which a few tokens make one value thousands of times as large as others, as in real ones."""
    shutil.copytree(tiny.make("llama-bias")[1], folder)
    tensors = load_file(folder / "model.safetensors")
    layer = "model.layers.1."
    gate, up = (f"{layer}mlp.{name}_proj." for name in ("gate", "up"))
    row = 60 * tensors[f"{gate}weight"][0]
    spread = torch.linalg.norm(row * tensors[f"{layer}post_attention_layernorm.weight"])
    tensors[f"{gate}weight"][0] = tensors[f"{up}weight"][0] = row
    tensors[f"{gate}bias"][0] = -1.5 * spread  # silu lets few tokens pass
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_inputs_that_no_range_serves_are_rounded_in_blocks(tmp_path: Path) -> None:
    """By codes of the same files, far closer than by the range; the user and the manifest are told."""
    source, report = stretched(tmp_path / "model"), Notes()
    folder = static(source, tmp_path / "out", "onnx", report=report)
    assert [note for note in report.notes if "1 of 15 matrices (ffn.down)" in note and "in blocks" in note]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["recipe"]["activation_ranges"]["rounded_as_they_come"] == [LOOSE]
    nodes = onnx.load(folder / "model.onnx", load_external_data=False).graph.node
    (product,) = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert product.input[1] == f"{LOOSE}.codes"
    ranges, (document, *_) = seen("llama-bias", source), documents(source)
    with OnnxModel(folder, "decoder", 1) as model:
        found = model.logits(stack([document], 0))
    fixed = naive("llama-bias", source, lambda name: by_range(*ranges[name]))
    with torch.no_grad():
        exact, wanted = (
            answer(m(**feed_of("llama-bias", document))) for m in (model_of("llama-bias", source), fixed)
        )
    assert np.square(found - exact).sum() < 0.1 * np.square(wanted - exact).sum()


def test_the_runtime_joins_them_and_the_manifest_tells_the_text(tmp_path: Path) -> None:
    folder = static(made("bert"), tmp_path, "onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 12
    assert kinds.count("QuantizeLinear") == 8  # query, key and value share one
    assert "DequantizeLinear" not in kinds
    manifest = json.loads(next(folder.glob("*manifest*.json")).read_text())
    assert manifest["recipe"]["quantize"]["activations"] == "static"
    told = manifest["recipe"]["activation_ranges"]
    assert told["text_sha256"] == hashlib.sha256(data.text("calibration").encode()).hexdigest()
    assert told["documents"] == 6 and told["tokens"] == 6 * 32
    written = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
    assert manifest["totals"]["size_bytes"] >= written  # the plan's size is that of measured graphs


@pytest.mark.slow
def test_graphs_for_transformers_js(tmp_path: Path) -> None:
    """One file with both steps of a decoder checks itself and is published."""
    folder = static(made("gpt54"), tmp_path, "onnx", layout="transformers.js")
    assert list((folder / "onnx").glob("decoder_model_merged*.onnx"))


def test_what_cannot_be_static_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"scheme": "int8"}, {"bits": 4}, {}):
        with pytest.raises(UsageError, match="add --scheme w8a8"):
            Quantize(activations="static", **options)
    with pytest.raises(UsageError, match="'fixed' is not one of dynamic, static"):
        Quantize(scheme="w8a8", activations="fixed")
    source = made("llama-bias")
    with pytest.raises(UnsupportedError, match=r"safetensors cannot hold --activations static.*--to onnx"):
        static(source, tmp_path / "out", "safetensors")
    monkeypatch.setattr(exporter, "LIBRARIES", ("no_such_torch",))
    with pytest.raises(UnsupportedError, match=r"no_such_torch is not installed: pip install"):
        static(source, tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())


def test_other_containers_are_left_out_with_a_note(tmp_path: Path) -> None:
    report = Notes()
    static(made("bert"), tmp_path, report=report)
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert any("no safetensors written" in note and "--activations dynamic" in note for note in report.notes)


def test_the_command_line(tmp_path: Path) -> None:
    words = ["quantize", str(made("bert")), "--scheme", "w8a8", "--activations", "static", "--to", "onnx"]
    size = ["--calibration-samples", "2", "--calibration-length", "16", "-o", str(tmp_path)]
    result = CliRunner().invoke(cli, [*words, *size])
    assert result.exit_code == 0, result.output
    lone = CliRunner().invoke(cli, ["quantize", str(made("bert")), "--activations", "static"])
    assert isinstance(lone.exception, UsageError) and "--scheme w8a8" in str(lone.exception)
