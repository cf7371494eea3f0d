"""Query, key and value as one product over neighbouring codes: where, and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from onnx_arrays import arrays, joint_rows
from pump import export, pump, quantized
from test_onnx_codes import with_values
from test_onnx_float import compare

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.exporters import _onnx_bind
from gpt54_convert.exporters import onnx as exporter
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.loaders import load
from gpt54_convert.verify import onnx_weights

LAYER = "model.layers.{}.self_attn.{}_proj.{}"


def placed(kind: str, name: str = "int4-g16") -> tuple[Any, Checkpoint]:
    """A tiny model that holds what its codes stand for, and those codes."""
    model, source = tiny.make(kind, seed=7)
    checkpoint = quantized(exporter, load(source), name)
    with_values(model, checkpoint)
    return model, checkpoint


def graph_of(folder: Path) -> Any:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


def operators(folder: Path) -> Counter[str]:
    return Counter(node.op_type for node in graph_of(folder).node)


@pytest.mark.parametrize(
    "kind",
    ["qwen2", *(pytest.param(k, marks=pytest.mark.slow) for k in ("llama", "llama-bias", "qwen3", "gemma3"))],
)
def test_one_product_with_the_bias_inside(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onnx_bind, "ACCURACY_LEVEL", 0)
    model, checkpoint = placed(kind)
    folder = export(exporter, checkpoint, tmp_path / "out")
    layers = model.config.num_hidden_layers
    found = operators(folder)
    assert found["Split"] == layers and found["MatMulNBits"] == 5 * layers + 1
    rows = [checkpoint.tensors[LAYER.format(0, each, "weight")].shape[0] for each in "qkv"]
    codes = "+".join(LAYER.format(0, each, "weight") for each in "qkv") + ".codes"
    assert joint_rows(graph_of(folder))[codes] == rows
    if kind == "qwen2":  # no addition is left but those of the residuals, which the norms do
        assert not found["Add"]
    assert compare(model, folder) < 1e-4


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])  # joint matrices; matrices that transformers keeps turned
def test_what_is_stored_is_what_was_written(kind: str, tmp_path: Path) -> None:
    """Every code and every bias by its own name, by our reader and by the graph's own words."""
    _, checkpoint = placed(kind, "int4-g16-asym")
    folder = export(exporter, checkpoint, tmp_path / "out")
    read = onnx_weights.read(folder, {name: {} for name in checkpoint.tensors})
    assert read is not None and set(read.tensors) == set(checkpoint.tensors)
    stored = arrays(folder / "model.onnx")
    for name, tensor in checkpoint.tensors.items():
        if tensor.grid is None:
            wanted = tensor.float_rows(0, tensor.row_count)
            assert np.array_equal(read.tensors[name].float_rows(0, tensor.row_count), wanted)
            assert np.array_equal(stored[name].reshape(wanted.shape), wanted)
            continue
        codes, own = (
            tensor.read_codes(0, tensor.row_count),
            read.tensors[name].read_codes(0, tensor.row_count),
        )
        assert np.array_equal(own.codes, codes.codes) and np.array_equal(own.offset, codes.offset)
        assert np.array_equal(own.scale, codes.scale.astype(np.float32))


def test_the_plain_graph_reads_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onnx_bind, "ACCURACY_LEVEL", 0)
    model, checkpoint = placed("qwen2")
    files = []
    for problem in ("", "known to be wrong"):
        folder = tmp_path / f"out{len(files)}"
        folder.mkdir()
        sink = exporter.OnnxSink(checkpoint, folder, SinkOptions("tiny", "test"), problem)
        pump(sink)
        files.append((folder / "model.onnx_data").read_bytes())
    found = operators(folder)
    assert not found["Split"] and found["MatMulNBits"] == 7 * model.config.num_hidden_layers + 1
    assert files[0] == files[1]
    assert compare(model, folder) < 1e-4


def test_other_grids_and_lone_files_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value on another grid; then files so small that a layer's three still have to stand in one."""
    monkeypatch.setattr(_onnx_bind, "ACCURACY_LEVEL", 0)
    model, checkpoint = placed("qwen2")
    name = LAYER.format(0, "v", "weight")
    wide = quantized(exporter, load(tiny.make("qwen2", seed=7)[1]), "int8-g16").tensors[name]
    mixed = checkpoint.with_tensors({**checkpoint.tensors, name: wide})
    with_values(model, mixed)
    folder = export(exporter, mixed, tmp_path / "mixed")
    assert operators(folder)["Split"] == model.config.num_hidden_layers - 1
    assert compare(model, folder) < 1e-4
    small = export(exporter, mixed, tmp_path / "small", shard_bytes=4000)
    assert len(list(small.glob("model.onnx_data*"))) > 5
    assert operators(small)["Split"] == model.config.num_hidden_layers - 1
    assert compare(model, small) < 1e-4
