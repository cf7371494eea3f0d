"""Where joined operators fail, in whatever way, the plain graph is checked and shipped in their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import tiny
from test_onnx_float import compare
from test_onnx_refusals import drop_mask, job, swap_layers

from gpt54_convert.exporters import _onnx_check, _onnx_fuse, _onnx_graph, _onnx_trial
from gpt54_convert.exporters._onnx_trace import Traced
from gpt54_convert.formats.safetensors import Writer
from gpt54_convert.recipe import Convert, Quantize

Fault = Callable[[Traced, object], None]


def mean_something_else(traced: Traced, checkpoint: object) -> None:
    """Attentions whose scores are scaled wrongly."""
    _onnx_fuse.rewrite(traced, checkpoint)
    for node in traced.model.graph:
        if node.op_type == "Attention":
            node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)


def make_no_sense(traced: Traced, checkpoint: object) -> None:
    """What ONNX Runtime refuses to load."""
    _onnx_fuse.rewrite(traced, checkpoint)
    for node in traced.model.graph:
        if node.op_type == "Attention":
            node.attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", 7)


def break_off(traced: Traced, checkpoint: object) -> None:
    """A shape that the rewrite did not expect, when half of its work is done."""
    _onnx_fuse.rewrite(traced, checkpoint)
    raise IndexError("list index out of range")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (mean_something_else, "differs from transformers"),
        (make_no_sense, "ONNX Runtime cannot"),
        (break_off, "IndexError: list index out of range"),
        pytest.param(drop_mask, "differs from transformers", marks=pytest.mark.slow),
        pytest.param(swap_layers, "differs from transformers", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_the_plain_graph_takes_over(
    fault: Fault, why: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It equals torch, its user and the manifest are told once, and sizes are those of what lies there."""
    if large:
        monkeypatch.setattr(_onnx_trial, "CHECK_BYTES", 0)
    monkeypatch.setattr(_onnx_graph, "REWRITES", [fault])
    model, source = tiny.make("llama")
    notes = [note for note in job(source, Convert(), tmp_path / "out", "onnx") if "plain graph" in note]
    folder = tmp_path / "out" / "onnx"
    assert len(notes) == 1 and why in notes[0] and "decodes slower" in notes[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["recipe"]["notes"] == notes and manifest["verification"]["verdict"] == "pass"
    told = {entry["name"]: entry["size_bytes"] for entry in manifest["outputs"]}
    card = told.pop("README.md")
    assert card and manifest["totals"]["size_bytes"] == sum(told.values())
    kinds = {node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node}
    assert "Softmax" in kinds and "Attention" not in kinds
    assert compare(model, folder) < 1e-4


def test_good_graphs_have_nothing_to_tell(tmp_path: Path) -> None:
    notes = job(tiny.make("llama")[1], Convert(), tmp_path / "out", "onnx")
    manifest = json.loads((tmp_path / "out" / "onnx" / "manifest.json").read_text())
    assert not notes and "notes" not in manifest["recipe"]


@pytest.mark.parametrize("large", [False, True])
def test_weights_are_written_once(large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only graphs are written anew; of a large model those of the first layers once more, to be run."""
    if large:
        monkeypatch.setattr(_onnx_trial, "CHECK_BYTES", 0)
    monkeypatch.setattr(_onnx_graph, "REWRITES", [mean_something_else])
    opened: list[Path] = []
    real = Writer.__init__

    def noted(self: Writer, path: Path, layout: object) -> None:
        opened.append(path)
        real(self, path, layout)

    monkeypatch.setattr(Writer, "__init__", noted)
    job(tiny.make("llama")[1], Quantize(scheme="int4-g32"), tmp_path / "out", "onnx")
    assert [path.name for path in opened] == ["model.onnx_data"] * (1 + large)


def test_the_plain_graph_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the rewritten one fails, then the plain one passes: both have been run."""
    monkeypatch.setattr(_onnx_graph, "REWRITES", [mean_something_else])
    ran: list[bool] = []
    real = _onnx_check.check_logits

    def noted(folder: Path, graphs: dict[str, bytes], *told: object) -> None:
        ran.append(b"Softmax" in graphs["model.onnx"])
        real(folder, graphs, *told)

    monkeypatch.setattr(_onnx_check, "check_logits", noted)
    job(tiny.make("llama")[1], Convert(), tmp_path / "out", "onnx")
    assert ran == [False, True]


@pytest.mark.parametrize("kind", ["bert", pytest.param("gpt54", marks=pytest.mark.slow)])
def test_every_kind_of_model_has_a_plain_graph(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_onnx_graph, "REWRITES", [break_off])
    model, source = tiny.make(kind)
    assert job(source, Convert(), tmp_path / "out", "onnx")
    assert compare(model, tmp_path / "out" / "onnx") < 1e-4
