"""Rotation keeps the function exactly, wherever it is done, and spreads outliers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import tiny
import torch
from click.testing import CliRunner
from hf_models import model_of, outputs
from poison import poisoned
from safetensors.torch import load_file, save_file

from gpt54_convert import recipe_file
from gpt54_convert.cli import cli
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, InternalError, UnsupportedError
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe
from gpt54_convert.transforms import _rotation, rotate
from gpt54_convert.transforms._rotation import rotation
from gpt54_convert.transforms.rotate import Rotate
from gpt54_convert.verify.artifact import locate
from gpt54_convert.verify.verdict import PASS

WHOLE = ["llama", "llama-tied", "llama-bias", "llama-llama3", "mistral", "qwen2", "qwen2-tied", "qwen3"]
T5 = ["gpt54", "gpt54-tied"]
# What is said of those whose hidden states cannot be rotated.
VALUES_ONLY = {
    "gemma3": r"post_attention_layernorm\.weight scales their channels behind the last matrix",
    "gpt2": r"transformer\.h\.0\.ln_1\.weight belongs to a norm that subtracts the mean",
    "bert": r"LayerNorm\.weight belongs to a norm that subtracts the mean",
    "distilbert": r"LayerNorm\.weight belongs to a norm that subtracts the mean",
}


class Notes(Report):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def context(folder: Path, report: Report | None = None) -> Context:
    return Context(report or Report(), folder, 1)


def values(tensor: LazyTensor) -> Any:
    """Read in the tensor's own chunks, as an exporter does."""
    parts = [tensor.float_rows(start, stop) for start, stop in tensor.chunks()]
    return np.concatenate(parts).reshape(tensor.shape)


def saved(kind: str, source: Path, checkpoint: Checkpoint, folder: Path) -> Any:
    """transformers' own reading of the checkpoint's tensors and config."""
    shutil.copytree(source, folder)
    transposed = {".c_attn.", ".c_proj.", ".c_fc."} if kind == "gpt2" else set()
    found = {}
    for name, tensor in checkpoint.tensors.items():
        value = torch.from_numpy(values(tensor))
        conv1d = any(part in name for part in transposed) and value.dim() == 2
        found[name] = value.T.contiguous() if conv1d else value
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(checkpoint.config)))
    return model_of(kind, folder, dtype=torch.float32)


def changes(before: Checkpoint, after: Checkpoint) -> set[str]:
    return {n for n, t in before.tensors.items() if not np.array_equal(values(t), values(after.tensors[n]))}


@pytest.mark.parametrize("kind", [*WHOLE, *T5])
def test_the_function_is_kept(kind: str, tmp_path: Path) -> None:
    _, source = tiny.make(kind)
    before = load(source)
    after = Rotate().apply(before, context(tmp_path))
    wanted = outputs(model_of(kind, source, dtype=torch.float32))
    found = outputs(saved(kind, source, after, tmp_path / "out"))
    # T5 does not divide its scores: float32 alone differs by as much
    assert (wanted - found).abs().max() <= (3e-5 if kind in T5 else 1e-5) * wanted.abs().max()
    kept = {name for name in before.tensors if "q_norm" in name or "k_norm" in name}
    kept |= {name for name in before.tensors if name.endswith(("q_proj.bias", "k_proj.bias"))}
    kept |= {n for n in before.tensors if n.endswith(("gate_proj.bias", "up_proj.bias"))}
    kept |= {name for name in before.tensors if "relative_attention_bias" in name}
    assert changes(before, after) == set(before.tensors) - kept


@pytest.mark.parametrize("kind", VALUES_ONLY)
def test_where_hidden_states_cannot_turn_values_do(kind: str, tmp_path: Path) -> None:
    _, source = tiny.make(kind)
    before, report = load(source), Notes()
    after = Rotate().apply(before, context(tmp_path, report))
    wanted = outputs(model_of(kind, source, dtype=torch.float32))
    found = outputs(saved(kind, source, after, tmp_path / "out"))
    assert (wanted - found).abs().max() <= 1e-5 * wanted.abs().max()
    (said,) = report.said
    assert said.startswith("rotate: values are rotated within their heads, hidden states are not: ")
    changed = changes(before, after)
    layers = {"gemma3": 7}.get(kind, 2)
    biases = {"gemma3": 0}.get(kind, 1)
    assert re.search(VALUES_ONLY[kind], said) and len(changed) == layers * (2 + biases), changed


def test_a_tied_head_gets_weights_of_its_own_and_the_user_is_told(tmp_path: Path) -> None:
    before = load(tiny.make("llama-tied")[1])
    embedding = before.tensors["model.embed_tokens.weight"]
    report = Notes()
    after = Rotate().apply(before, context(tmp_path, report))
    assert after.tensors["lm_head.weight"].shape == embedding.shape
    assert after.config["tie_word_embeddings"] is False
    (said,) = report.said
    assert f"{embedding.size:,} weights of its own" in said and "residual = false" in said
    report = Notes()
    within = Rotate(residual=False).apply(before, context(tmp_path, report))
    assert list(within.tensors) == list(before.tensors) and not report.said
    assert changes(before, within) == {
        name for name in before.tensors if name.endswith(("v_proj.weight", "o_proj.weight"))
    }


@pytest.mark.parametrize("kind", ["llama-tied", "gpt54-tied", "gpt2"])
def test_an_outline_declares_what_comes_out_and_reads_nothing(kind: str, tmp_path: Path) -> None:
    checkpoint = load(tiny.make(kind, dtype="bfloat16")[1])

    def unread(start: int, stop: int) -> Any:
        raise AssertionError("was read")

    blind = {name: replace(tensor, read=unread) for name, tensor in checkpoint.tensors.items()}
    made, planned = (
        Rotate().apply(checkpoint, context(tmp_path)),
        Rotate().outline(checkpoint.with_tensors(blind)),
    )
    types = [{n: (t.shape, t.dtype) for n, t in c.tensors.items()} for c in (made, planned)]
    assert types[0] == types[1] and made.config == planned.config


def naive(size: int, seed: int) -> Any:
    """Q written out: signs times scipy's Hadamard matrix times the Hartley matrix of the odd rest."""
    odd = size
    while odd % 2 == 0:
        odd //= 2
    angles = [[2 * np.pi * j * k / odd for k in range(odd)] for j in range(odd)]
    hartley = np.cos(angles) + np.sin(angles)
    full = np.kron(scipy.linalg.hadamard(size // odd) if size > odd else np.ones((1, 1)), hartley)
    return rotation(size, seed).signs[:, None] * full / np.sqrt(size)


@pytest.mark.parametrize("size", [1, 2, 64, 96, 7, 576, 640])
def test_a_rotation_is_the_matrix_that_it_says(size: int) -> None:
    wanted, turn = naive(size, 3), rotation(size, 3)
    assert np.allclose(wanted @ wanted.T, np.eye(size), atol=1e-12)
    assert np.allclose(turn.turn(np.eye(size, dtype=np.float32)), wanted, atol=2e-6)
    if size & (size - 1) == 0:
        assert np.allclose(np.abs(wanted), size**-0.5)  # an outlier spreads evenly
    assert set(turn.signs) <= {-1.0, 1.0} and (size < 64 or abs(turn.signs.mean()) < 0.5)


def a_tensor(weight: Any, name: str = "w") -> LazyTensor:
    return LazyTensor(name, weight.shape, "float32", lambda start, stop: weight[start:stop])


@pytest.mark.parametrize("cut", [None, 64, 100])
def test_rows_are_turned_in_pieces_of_any_size(cut: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of the source so small that every row is put together from many of them."""
    weight = np.random.default_rng(0).normal(size=(192, 40)).astype(np.float32)
    monkeypatch.setattr(_rotation, "CHUNK_BYTES", 4 * 40 * 30)
    turned = rotation(192, 5).rows(a_tensor(weight))
    wanted = naive(192, 5).T @ weight
    step = cut or 192
    pieces = [turned.float_rows(start, min(192, start + step)) for start in range(0, 192, step)]
    assert np.allclose(np.concatenate(pieces), wanted, atol=1e-5)
    assert np.allclose(turned.float_rows(17, 60), wanted[17:60], atol=1e-5)
    assert turned.column_read and turned.row_align == 12


def test_values_are_turned_head_by_head() -> None:
    weight = np.random.default_rng(0).normal(size=(72, 10)).astype(np.float32)
    matrix = naive(12, 2)
    turned = rotation(12, 2).row_groups(a_tensor(weight), 48)
    wanted = weight.copy()
    for first in (48, 60):
        wanted[first : first + 12] = matrix.T @ weight[first : first + 12]
    assert np.allclose(turned.float_rows(0, 72), wanted, atol=1e-5)
    assert np.allclose(turned.float_rows(45, 67), wanted[45:67], atol=1e-5)
    bias = rotation(12, 2).row_groups(a_tensor(weight[:, 0].copy()), 0)
    assert bias.rows(3, 30).shape == (27,)


def with_outliers(source: Path, folder: Path) -> Path:
    """A llama whose embedding and writers have two channels thirty times larger than the others."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if "embed" in name:
            value[:, [3, 17]] *= 30
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value[[3, 17]] *= 30
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_outliers_spread(tmp_path: Path) -> None:
    """Kurtosis and the greatest entry of rotated matrices, relative to their deviation."""
    source = with_outliers(tiny.make("llama")[1], tmp_path / "in")
    before = load(source)
    after = Rotate().apply(before, context(tmp_path))
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        old, new = (values(checkpoint.tensors[name]).ravel() for checkpoint in (before, after))
        assert scipy.stats.kurtosis(old) > 20 and abs(scipy.stats.kurtosis(new)) < 2
        assert np.abs(new).max() / new.std() < 0.5 * np.abs(old).max() / old.std()


def test_activations_in_8_bits_cost_less(tmp_path: Path) -> None:
    source = with_outliers(tiny.make("llama")[1], tmp_path / "in")
    exact = outputs(model_of("llama", source))

    def error(name: str, *passes: Rotate) -> float:
        export = Export(tmp_path / name, to=("safetensors",), verify=False)
        run(Recipe(source, Quantize(scheme="w8a8"), export, passes), Report())
        found = outputs(model_of("llama", tmp_path / name / "safetensors"))
        return float((found - exact).square().sum() / exact.square().sum())

    assert error("turned", Rotate()) < 0.5 * error("plain")


@pytest.mark.parametrize(
    ("kind", "container"),
    [
        *(("llama-tied", name) for name in ("safetensors", "onnx")),
        ("gpt54", "safetensors"),
        *(pytest.param(kind, "gguf", marks=pytest.mark.llama_cpp) for kind in ("llama-tied", "gpt54")),
    ],
)
def test_every_container_holds_it(kind: str, container: str, tmp_path: Path) -> None:
    """Written, read back and, where runtimes are there, run beside the float model."""
    _, source = tiny.make(kind)
    export = Export(tmp_path / "out", to=(container,))
    (artifact,) = run(Recipe(source, Convert("float32"), export, (Rotate(),)), Report())
    assert artifact.verdict is not None
    checks = [check for check in artifact.verdict.checks if check.kind != "tokenizer"]
    assert checks and all(check.outcome == PASS for check in checks), checks
    subject = locate(artifact.folder)
    assert subject.passes == ("rotate",) and not subject.is_student
    if container == "safetensors":
        wanted, found = outputs(model_of(kind, source)), outputs(model_of(kind, artifact.folder))
        assert (wanted - found).abs().max() <= 3e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight"]
)
def test_what_is_not_finite_is_refused_by_name(name: str, tmp_path: Path) -> None:
    bad = poisoned(load(tiny.make("llama")[1]), name, np.nan)
    with pytest.raises(InputError, match=rf"tensor {name}: row \d+ holds a weight that is not finite"):
        Rotate().apply(bad, context(tmp_path))


def test_an_undescribed_model_is_refused(tmp_path: Path) -> None:
    unknown = replace(load(tiny.make("llama")[1]), architecture=None)
    with pytest.raises(UnsupportedError, match="rotated in a described architecture"):
        Rotate().apply(unknown, context(tmp_path))


def test_a_tensor_that_nobody_described_keeps_hidden_states_as_they_are(tmp_path: Path) -> None:
    source = load(tiny.make("llama")[1])
    adapter = source.tensors["model.layers.0.mlp.up_proj.weight"].renamed("model.layers.0.adapter.weight")
    odd, report = source.with_tensors({**source.tensors, adapter.name: adapter}), Notes()
    after = Rotate().apply(odd, context(tmp_path, report))
    assert "does not say what model.layers.0.adapter.weight does" in report.said[0]
    assert "model.embed_tokens.weight" not in changes(odd, after)


def test_a_wrong_table_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[[Checkpoint], Any] = rotate.norm_folds

    def wrong(checkpoint: Checkpoint) -> Any:
        return [replace(fold, targets=fold.targets[:1]) for fold in right(checkpoint)]

    monkeypatch.setattr(rotate, "norm_folds", wrong)
    monkeypatch.setattr(rotate, "obstacle", lambda checkpoint: "")
    with pytest.raises(InternalError, match="rotate changed this model's outputs"):
        Rotate().apply(load(tiny.make("llama")[1]), context(tmp_path))


def test_the_seed_decides_the_bytes(tmp_path: Path) -> None:
    source = load(tiny.make("llama")[1])
    name = "model.layers.0.mlp.up_proj.weight"
    found = [values(Rotate(seed=seed).apply(source, context(tmp_path)).tensors[name]) for seed in (0, 0, 1)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_the_command_and_recipes_know_it(tmp_path: Path) -> None:
    _, source = tiny.make("llama-tied")
    words = ["quantize", str(source), "--scheme", "int8", "--rotate", "--smooth", "0.5", "--to"]
    result = CliRunner().invoke(cli, [*words, "safetensors", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    subject = locate(tmp_path / "safetensors")
    assert subject.passes == ("rotate", "smooth") and not subject.is_student
    verified = CliRunner().invoke(cli, ["verify", str(tmp_path / "safetensors")])
    assert verified.exit_code == 0, verified.output
    content = {
        "source": "in",
        "pass": [{"name": "rotate", "residual": False, "seed": 3}],
        "quantize": {"bits": 4},
    }
    recipe = recipe_file.from_dict(content, "here", tmp_path)
    assert recipe.passes == (Rotate(False, 3),)
