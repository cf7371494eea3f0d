"""What ONNX cannot hold is said in one sentence; a graph that differs from torch is never published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
import transformers
from pump import export, quantized
from test_onnx_float import compare, written

from gpt54_convert import archs
from gpt54_convert.core import views
from gpt54_convert.core.report import Report
from gpt54_convert.errors import OutputError, UnsupportedError
from gpt54_convert.exporters import _onnx_bind, _onnx_check, _onnx_trace, _onnx_trial
from gpt54_convert.exporters import onnx as exporter
from gpt54_convert.exporters._onnx_trace import Traced
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import run
from gpt54_convert.quantize.grids import grid
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe


class Notes(Report):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def job(source: Path, step: Quantize | Convert, output: Path, *to: str) -> list[str]:
    report = Notes()
    run(Recipe(source, step, Export(output=output, to=to)), report)
    return report.notes


@pytest.mark.parametrize("name", ["q4_k", "int3-g32", "int5-g32", "mxfp4", "q4_1", "iq4_nl"])
def test_grids_of_other_widths_are_refused(name: str) -> None:
    tensor = load(tiny.make("llama")[1]).tensors["model.layers.0.mlp.up_proj.weight"]
    assert "2, 4 and 8 bits" in (exporter.refuses("ffn.up", tensor, grid(name)) or "")
    assert exporter.refuses("ffn.up", tensor, grid("q8_0")) is None


def test_small_tables_and_vectors_are_refused() -> None:
    tensors = load(tiny.make("llama")[1]).tensors
    matrix, norm = tensors["model.layers.0.mlp.up_proj.weight"], tensors["model.norm.weight"]
    assert "floats" in (exporter.refuses("embed.position", matrix, grid("int8-g32")) or "")
    assert "only matrices" in (exporter.refuses("norm.final", norm, grid("int8-g32")) or "")
    assert "rows of 64" in (exporter.refuses("ffn.up", matrix, grid("int4-g128")) or "")


def test_schemes_for_other_containers_are_refused(tmp_path: Path) -> None:
    _, source = tiny.make("llama")
    with pytest.raises(UnsupportedError, match="onnx cannot hold q4_k_m"):
        job(source, Quantize(scheme="q4_k_m"), tmp_path / "a", "onnx")
    with pytest.raises(UnsupportedError, match="onnx cannot hold bfloat16"):
        job(source, Convert(dtype="bfloat16"), tmp_path / "b", "onnx")
    assert not list(tmp_path.iterdir())


def test_an_unknown_architecture_says_what_to_add(tmp_path: Path) -> None:
    _, source = tiny.make("llama")
    checkpoint = load(source)
    strange = type(checkpoint)(checkpoint.tensors, {"model_type": "strange"}, checkpoint.source)
    with pytest.raises(UnsupportedError, match=r"'strange' is not described.*archs/strange\.py"):
        exporter.open_sink(strange, tmp_path, SinkOptions("x", "x"))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotation_by_the_length_of_the_text_is_refused(kind: str, tmp_path: Path) -> None:
    """transformers chooses the frequencies anew for every text, in Python."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 12, "long_factor": [2.0] * 12}
    _, source = tiny.make("llama", rope_parameters=rope)
    with pytest.raises(UnsupportedError, match=f"rope_type '{kind}' rotates by the length.*--to safetensors"):
        job(source, Convert(), tmp_path / "out", "onnx")
    job(source, Convert(), tmp_path / "out", "safetensors")


def test_what_torch_cannot_trace_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("aten::strange\nand much more")

    monkeypatch.setattr(_onnx_trace.calls, "of", broken)
    monkeypatch.setattr(_onnx_trace, "_kept", {})
    with pytest.raises(UnsupportedError, match=r"cannot be traced to ONNX \(aten::strange\)$"):
        job(tiny.make("llama")[1], Convert(), tmp_path / "out", "onnx")


def test_a_lone_file_has_no_config(tmp_path: Path) -> None:
    _, source = tiny.make("llama")
    notes = job(source / "model.safetensors", Convert(), tmp_path / "out")
    assert any("no onnx written" in note and "config.json" in note for note in notes)
    assert not (tmp_path / "out" / "onnx").exists()


def test_missing_libraries_are_named_and_the_others_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "LIBRARIES", ("torch", "no_such_runtime"))
    _, source = tiny.make("llama")
    notes = job(source, Quantize(bits=4), tmp_path / "out")
    said = next(note for note in notes if "no onnx written" in note)
    assert "no_such_runtime" in said and "pip install 'gpt54-convert[onnx]'" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gguf", "safetensors"]
    with pytest.raises(UnsupportedError, match="pip install"):
        job(source, Quantize(bits=4), tmp_path / "asked", "onnx")
    assert not (tmp_path / "asked").exists()


def drop_mask(traced: Traced, _checkpoint: object) -> None:
    """What happens where a mask is optimised away: padding is attended to."""
    for node in traced.model.graph:
        if node.op_type == "Cast" and node.inputs[0] is traced.model.graph.inputs[1]:
            ones = onnx_ones(node)
            node.outputs[0].replace_all_uses_with(ones)
            return
    raise AssertionError("no mask found")


def onnx_ones(node: object) -> object:
    import onnx_ir as ir

    graph, source = node.graph, node.inputs[0]
    equal = ir.node("Equal", [source, source])
    graph.insert_before(node, equal)
    return equal.outputs[0]


def swap_layers(traced: Traced, _checkpoint: object) -> None:
    """Weights of two layers exchanged."""
    sources = dict(traced.sources)
    a, b = (next(n for n in sources if f"layers.{i}.mlp.up_proj" in n) for i in (0, 1))
    sources[a], sources[b] = sources[b], sources[a]
    traced.sources.update(sources)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("fault", [drop_mask, swap_layers])
def test_a_wrong_graph_is_not_published(
    fault: Callable[[Traced, object], None], large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the plain one that takes its place.  Of a large model the first layers alone are run."""
    if large:
        monkeypatch.setattr(_onnx_trial, "CHECK_BYTES", 0)
    real = _onnx_trace.trace

    def faulty(*told: Any) -> list[Traced]:
        graphs = real(*told)
        fault(graphs[0], None)
        return graphs

    monkeypatch.setattr(_onnx_trace, "trace", faulty)
    _, source = tiny.make("llama")
    with pytest.raises(OutputError, match=r"differs from transformers .* not published; please report it"):
        job(source, Convert(), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_wrong_codes_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales that the graph reads from the wrong place."""
    real = _onnx_bind._stored

    def shifted(graph, name, part, shape):
        if name.endswith("up_proj.weight.scales"):
            part = type(part)(part.file, part.offset + 4, part.shape, part.dtype)
        return real(graph, name, part, shape)

    monkeypatch.setattr(_onnx_bind, "_stored", shifted)
    _, source = tiny.make("llama")
    with pytest.raises(OutputError, match="differs from transformers"):
        job(source, Quantize(scheme="int4-g16"), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "layers"),
    [
        ("llama", {"num_hidden_layers": 3}, 2),
        pytest.param("gemma3", {}, 6, marks=pytest.mark.slow),
        pytest.param("gpt54", {}, 2, marks=pytest.mark.slow),
        pytest.param("gpt2", {"n_layer": 3}, 2, marks=pytest.mark.slow),
        pytest.param("bert", {"num_hidden_layers": 3}, 2, marks=pytest.mark.slow),
    ],
)
def test_of_a_large_model_the_first_layers_are_run(
    kind: str, changes: dict[str, int], layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_onnx_trial, "CHECK_BYTES", 0)
    ran = []
    real = _onnx_check.check_logits

    def noted(folder, graphs, stored, *told):
        ran.append(stored)
        real(folder, graphs, stored, *told)

    monkeypatch.setattr(_onnx_check, "check_logits", noted)
    _, source = tiny.make(kind, seed=5, **changes)
    folder = written(load(source), tmp_path / "out")
    architecture = archs.by_name(ran[0].architecture)
    found = {architecture.match(name).layer for name in ran[0].tensors}
    assert len(ran) == 1 and found == {None, *range(layers)}
    assert not list(folder.glob(".check*"))


def test_the_structure_of_large_graphs_is_checked(tmp_path: Path) -> None:
    _, source = tiny.make("llama")
    folder = written(load(source), tmp_path / "good")
    graphs = {"model.onnx": (folder / "model.onnx").read_bytes()}
    _onnx_check.check_structure(folder, graphs)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.node[5].input[0] = "nothing"
    with pytest.raises(OutputError, match="'nothing', which nothing makes"):
        _onnx_check.check_structure(folder, {"model.onnx": model.SerializeToString()})
    data = folder / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(OutputError, match="beyond its file's end"):
        _onnx_check.check_structure(folder, graphs)


def test_a_model_that_float32_itself_runs_badly_is_held_to_that(tmp_path: Path) -> None:
    """torch's float32 and float64 are 1e-3 apart here, more than graphs of other models may be."""
    _, source = tiny.make("gpt54-tied", d_model=320, d_kv=32, d_ff=72, num_heads=2)
    assert (written(load(source), tmp_path / "out") / "decoder_model.onnx").exists()


def test_shards_and_float16(tmp_path: Path) -> None:
    """Files of weights are cut; most weights in float16 make a float16 graph, at its own precision."""
    model, source = tiny.make("llama")
    checkpoint = load(source)
    half = {n: views.cast(t, "float16") if len(t.shape) > 1 else t for n, t in checkpoint.tensors.items()}
    folder = export(exporter, checkpoint.with_tensors(half), tmp_path / "out", shard_bytes=300_000)
    names = sorted(path.name for path in folder.glob("model.onnx_data*"))
    assert names[:2] == ["model.onnx_data", "model.onnx_data_1"]
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {entry.type.tensor_type.elem_type for entry in graph.graph.output} == {onnx.TensorProto.FLOAT16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    assert 1e-6 < compare(model, folder) < 1e-2


def test_a_gguf_file_becomes_the_same_graph(tmp_path: Path) -> None:
    """llama's rows are permuted in GGUF and come back."""
    model, source = tiny.make("llama")
    job(source, Convert(dtype="float32"), tmp_path / "a", "gguf")
    gguf = next((tmp_path / "a" / "gguf").glob("*.gguf"))
    job(gguf, Convert(), tmp_path / "b", "onnx")
    assert compare(model, tmp_path / "b" / "onnx") < 1e-4


def test_bfloat16_becomes_float32_exactly(tmp_path: Path) -> None:
    _, source = tiny.make("llama", dtype="bfloat16")
    folder = written(load(source), tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="float32").eval()
    assert compare(model, folder) < 1e-4
    kinds = {
        each.data_type
        for each in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer
    }
    assert onnx.TensorProto.BFLOAT16 not in kinds


def test_rows_kept_as_float16_beside_codes(tmp_path: Path) -> None:
    """A float32 graph reads float16 weights through a cast, without changing them."""
    model, source = tiny.make("llama", seed=3)
    checkpoint = quantized(exporter, load(source), "int8-g16")
    name = "model.layers.0.mlp.down_proj.weight"
    kept = views.cast(load(source).tensors[name], "float16")
    placed = checkpoint.with_tensors({**checkpoint.tensors, name: kept})
    folder = export(exporter, placed, tmp_path / "out")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    assert next(each for each in graph.initializer if each.name == name).data_type == onnx.TensorProto.FLOAT16
    assert not np.isnan(compare(model, folder))
