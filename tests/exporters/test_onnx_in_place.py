"""A decoder's second graph, with keys and values written in place: it equals torch, or it is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny
import torch
from pump import export
from test_onnx_plain import mean_something_else
from test_onnx_refusals import job

from gpt54_convert.exporters import _onnx_graph, _onnx_in_place, _onnx_trial
from gpt54_convert.exporters import onnx as exporter
from gpt54_convert.exporters._onnx_layout import IN_PLACE as FILE
from gpt54_convert.forward import onnx_in_place
from gpt54_convert.forward.onnx_in_place import InPlace
from gpt54_convert.loaders import load
from gpt54_convert.recipe import Convert, Quantize

SLOW = ("llama", "llama-bias", "llama-llama3", "llama-yarn", "mistral", "qwen3-tied")
KINDS = ["qwen2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
_MADE: dict[str, tuple[Any, Path]] = {}
Arrays = dict[str, np.ndarray]


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny model, and its float artifact."""
    kind = request.param
    if kind not in _MADE:
        changes = {"head_dim": 16} if kind.startswith(("llama", "mistral")) else {}
        model, source = tiny.make(kind, **changes)
        _MADE[kind] = model, export(exporter, load(source), tmp_path_factory.mktemp("in-place") / "out")
    return _MADE[kind]


def tokens(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 200, length)


def exact(model: Any, row: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(row)[None]).logits[0].numpy()


def worst(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(
    "cuts",
    [(), (20,), (1,), (5, 6, 7, 8, 9, 20, 33), tuple(range(1, 40))],
    ids=["whole", "halves", "one, then all", "mixed", "each"],
)
def test_equals_torch(cuts: tuple[int, ...], made: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """In buffers that have to grow on the way, and twice, the second time over what was left in them."""
    monkeypatch.setattr(onnx_in_place, "_SHORTEST", 8)
    model, folder = made
    graph = InPlace(folder / FILE, 1)
    for seed in (0, 1):
        row = tokens(40, seed)
        graph.restart()
        parts = [graph.advance(piece[None])[0] for piece in np.split(row, cuts)]
        assert worst(np.concatenate(parts), exact(model, row)) < 1e-4


class Rows:
    """Several rows in buffers of 24, padded behind as onnxruntime-genai pads them."""

    def __init__(self, folder: Path, rows: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.graph = onnxruntime.InferenceSession(str(folder / FILE), options)
        self.past: Arrays = {
            entry.name: np.zeros((rows, entry.shape[1], 24, entry.shape[3]), np.float32)
            for entry in self.graph.get_inputs()
            if entry.name.startswith("past")
        }

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        names = [entry.name for entry in self.graph.get_outputs()]
        feed = {"input_ids": ids, "attention_mask": mask, **self.past}
        found = dict(zip(names, self.graph.run(names, feed), strict=True))
        self.past = {k.replace("present", "past_key_values"): v for k, v in found.items() if k != "logits"}
        return found["logits"]


def test_rows_padded_behind(made: tuple[Any, Path]) -> None:
    """Prompts of different lengths at once, then a token for each, at positions of its own."""
    model, folder = made
    texts, prompts = [tokens(12, 2), tokens(16, 3)], (5, 9)
    ids, mask = np.zeros((2, 2, 9), np.int64)
    for row, (text, length) in enumerate(zip(texts, prompts, strict=True)):
        ids[row, :length], mask[row, :length] = text[:length], 1
    run = Rows(folder, 2)
    first = run(ids, mask)
    found = [[first[row, :length]] for row, length in enumerate(prompts)]
    for step in range(7):
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        new = np.array([[text[length + step]] for text, length in zip(texts, prompts, strict=True)])
        logits = run(new, mask)
        for row in (0, 1):
            found[row].append(logits[row])
    for text, parts in zip(texts, found, strict=True):
        answer = np.concatenate(parts)
        assert worst(answer, exact(model, text)[: len(answer)]) < 1e-4


def test_several_tokens_after_a_past_in_several_rows_are_refused(made: tuple[Any, Path]) -> None:
    """The operator would take one row's positions for all: it says so, and answers nothing."""
    run = Rows(made[1], 2)
    ids = np.stack([tokens(6, 4), tokens(6, 5)])
    run(ids[:, :3], np.ones((2, 3), np.int64))
    with pytest.raises(Exception, match="batch_size must be 1"):
        run(ids[:, 3:], np.ones((2, 6), np.int64))


def test_what_stands_in_it(made: tuple[Any, Path]) -> None:
    model, folder = made
    graph = onnx.load(folder / FILE, load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("GroupQueryAttention") == model.config.num_hidden_layers
    assert not {"Attention", "RotaryEmbedding", "Trilu", "Where"} & set(kinds)
    assert [each.name for each in graph.input][:3] == ["input_ids", "attention_mask", "past_key_values.0.key"]
    both = [onnx.load(folder / name, load_external_data=False).graph for name in (FILE, "model.onnx")]
    weights = [{each.name for each in graph.initializer if each.external_data} for graph in both]
    assert weights[0] == weights[1]
    genai = json.loads((folder / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["filename"] == FILE and genai["search"]["past_present_share_buffer"]
    assert "position_ids" not in genai["model"]["decoder"]["inputs"]


def scaled(model: ir.Model, longest: int) -> ir.Model | None:
    made = REAL(model, longest)
    for node in made.graph if made else ():
        if node.op_type == "GroupQueryAttention":
            node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    return made


def broken(model: ir.Model, longest: int) -> ir.Model | None:
    raise IndexError("list index out of range")


REAL = _onnx_in_place.of
FAULTS = {
    "another function": (scaled, "differs from transformers"),
    "not to be built": (broken, "IndexError: list index out of range"),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_one_is_left_out(
    name: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one note; the first graph keeps its joined operators, and all sizes are right."""
    fault, why = FAULTS[name]
    monkeypatch.setattr(_onnx_in_place, "of", fault)
    if large:
        monkeypatch.setattr(_onnx_trial, "CHECK_BYTES", 0)
    notes = job(tiny.make("qwen2")[1], Quantize(scheme="int4-g32"), tmp_path / "out", "onnx")
    assert [why in note and FILE in note for note in notes] == [True]
    assert_alone(tmp_path / "out" / "onnx", notes, "Attention")


def test_it_goes_with_joined_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the plain graph takes over there is no other."""
    monkeypatch.setattr(_onnx_graph, "REWRITES", [mean_something_else, _onnx_graph.REWRITES[1]])
    notes = job(tiny.make("qwen2")[1], Convert(), tmp_path / "out", "onnx")
    assert len(notes) == 1 and "plain graph" in notes[0]
    assert_alone(tmp_path / "out" / "onnx", notes, "Softmax")


def assert_alone(folder: Path, notes: list[str], operator: str) -> None:
    assert sorted(path.name for path in folder.glob("*.onnx")) == ["model.onnx"]
    kinds = {node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node}
    assert operator in kinds
    genai = json.loads((folder / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["filename"] == "model.onnx"
    assert not genai["search"]["past_present_share_buffer"]
    assert genai["model"]["decoder"]["inputs"]["position_ids"] == "position_ids"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["recipe"]["notes"] == notes
    told = {entry["name"]: entry["size_bytes"] for entry in manifest["outputs"]}
    assert told.pop("README.md") and manifest["totals"]["size_bytes"] == sum(told.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("gemma3", {}), ("gpt2", {}), ("llama", {}), ("mistral", {"sliding_window": 64, "head_dim": 16})],
    ids=["two masks", "learned positions", "heads of 24", "a window"],
)
def test_where_it_would_be_wrong_it_is_not_made(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    notes = job(tiny.make(kind, **changes)[1], Convert(), tmp_path / "out", "onnx")
    assert not [note for note in notes if FILE in note]
    assert not (tmp_path / "out" / "onnx" / FILE).exists()
