"""Activation-aware scaling keeps the function, and rounding loses less where a few channels are large."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from hf_models import loaded, outputs
from poison import poisoned

from gpt54_convert import data, recipe_file
from gpt54_convert.cli import cli
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError, UnsupportedError, UsageError
from gpt54_convert.loaders import load
from gpt54_convert.transforms import _folds, awq
from gpt54_convert.transforms.awq import Awq, Inputs
from gpt54_convert.transforms.smooth import Smooth
from gpt54_convert.verify.artifact import locate


def context(folder: Path) -> Context:
    return Context(Report(), folder, 1)


def values(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: t.float_rows(0, t.row_count) for name, t in checkpoint.tensors.items()}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt54", "bert"])
def test_the_function_is_kept(kind: str, tmp_path: Path) -> None:
    _, source = tiny.make(kind)
    before = load(source)
    after = Awq("int2-g16").apply(before, context(tmp_path))
    wanted, found = outputs(loaded(kind, source, before)), outputs(loaded(kind, source, after))
    assert (wanted - found).abs().max() <= 2e-5 * wanted.abs().max()
    old, new = values(before), values(after)
    assert any(not np.array_equal(old[name], new[name]) for name in old)


def test_an_outline_declares_what_comes_out(tmp_path: Path) -> None:
    checkpoint = load(tiny.make("llama", dtype="bfloat16")[1])
    made, planned = Awq().apply(checkpoint, context(tmp_path)), Awq().outline(checkpoint)
    types = [{n: (t.shape, t.dtype) for n, t in c.tensors.items()} for c in (made, planned)]
    assert types[0] == types[1]


def naive_round(row: Any, bits: int, group: int) -> Any:
    """A float16 scale a group from the element that is largest by absolute value, as ggml's q4_0 has it."""
    parts = row.reshape(-1, group).astype(np.float64)
    most = np.take_along_axis(parts, np.abs(parts).argmax(1)[:, None], 1)
    scale = (most / -(2 ** (bits - 1))).astype(np.float32).astype(np.float16).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scale != 0, np.rint(parts / scale), 0)
    return (np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale).reshape(row.shape)


def naive_error(weight: Any, factor: Any, vectors: Any) -> float:
    rounded = np.stack([naive_round(row, 4, 32) for row in weight * factor]) / factor
    second = vectors.T.astype(np.float64) @ vectors / len(vectors)
    difference = rounded - weight
    return float(np.einsum("oi,ij,oj->", difference, second, difference))


def a_place(outliers: float) -> tuple[Checkpoint, _folds.Fold, Inputs]:
    """A norm of a tiny llama, with inputs some of whose channels are larger than the rest."""
    checkpoint = load(tiny.make("llama")[1])
    fold = next(f for f in _folds.folds(checkpoint) if "model.layers.0.input_layernorm.weight" in f.sources)
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(300, fold.channels)).astype(np.float32)
    vectors[:, [3, 17, 40]] *= outliers
    return checkpoint, fold, Inputs(np.abs(vectors[:200]).mean(0), vectors[:200], vectors[200:])


@pytest.mark.parametrize("outliers", [1.0, 30.0])
def test_never_worse_than_nothing_and_better_with_outliers(outliers: float) -> None:
    """By a rounding and a trace of our own; strictly better where channels are large."""
    checkpoint, fold, inputs = a_place(outliers)
    factor = awq.choose(checkpoint, fold, inputs, awq.grids_of(checkpoint, "int4-g32"))
    old = values(checkpoint)

    def error(factor: Any, vectors: Any) -> float:
        return sum(naive_error(old[name], factor, vectors) for name in fold.targets)

    ones = np.ones_like(factor)
    for vectors in (inputs.used, inputs.held):
        assert error(factor, vectors) <= error(ones, vectors) * (1 + 1e-4)
    if outliers > 1:
        assert error(factor, inputs.held) < 0.7 * error(ones, inputs.held)
        assert factor[[3, 17, 40]].min() > 2 * np.median(factor)


def test_the_errors_are_those_of_a_naive_sum() -> None:
    checkpoint, fold, inputs = a_place(5.0)
    factor = awq.factors_of(fold, inputs.mean, 0.5)
    name = fold.targets[0]
    found = awq.output_errors(
        checkpoint.tensors[name], awq.grids_of(checkpoint, "int4")[name], inputs, [factor]
    )
    weight = values(checkpoint)[name]
    for got, vectors in zip(found[:, 0], (inputs.used, inputs.held), strict=True):
        assert got == pytest.approx(naive_error(weight, factor, vectors), rel=0.02)


def test_a_gain_that_does_not_show_on_held_back_text_is_not_taken() -> None:
    """Large channels of the vectors used are small ones of those held back."""
    checkpoint, fold, inputs = a_place(30.0)
    held = inputs.held.copy()
    held[:, [3, 17, 40]] = 0
    grids = awq.grids_of(checkpoint, "int4")
    assert (awq.choose(checkpoint, fold, inputs, grids) != 1).any()
    assert (awq.choose(checkpoint, fold, replace(inputs, held=held), grids) == 1).all()


def test_dead_channels_and_matrices_that_stay_floats() -> None:
    checkpoint, fold, inputs = a_place(30.0)
    mean = inputs.mean.copy()
    mean[[0, 5]] = 0
    factor = awq.factors_of(fold, mean, 1.0)
    assert factor[0] == factor[5] == 1 and np.isfinite(factor).all() and factor.min() > 0
    assert (awq.factors_of(fold, np.zeros_like(mean), 1.0) == 1).all()
    floats = awq.grids_of(checkpoint, "float16")
    assert (awq.choose(checkpoint, fold, inputs, floats) == 1).all()


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    source = load(tiny.make("llama")[1])

    with pytest.raises(InputError, match=r"what enters its column .* is not finite"):
        Awq().apply(poisoned(source, "model.layers.0.input_layernorm.weight", np.inf), context(tmp_path))
    name = "model.layers.1.mlp.down_proj.weight"
    place = next(f for f in _folds.folds(source) if name in f.targets)
    vectors = np.ones((4, 96), np.float32)
    bad = poisoned(source, name, np.nan)
    with pytest.raises(InputError, match=rf"tensor {name}: .*"):
        awq.choose(bad, place, Inputs(vectors[0], vectors, vectors), awq.grids_of(bad, "int4"))


def test_an_undescribed_model_is_refused(tmp_path: Path) -> None:
    unknown = replace(load(tiny.make("llama")[1]), architecture=None)
    with pytest.raises(UnsupportedError, match="described architecture"):
        Awq().apply(unknown, context(tmp_path))


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gpt54_convert.forward.torch_model", raising=False)
    monkeypatch.delattr("gpt54_convert.forward.torch_model", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnsupportedError, match=r"--awq runs the model, which needs torch: pip install"):
        Awq().apply(load(tiny.make("llama")[1]), context(tmp_path))
    with pytest.raises(UnsupportedError, match=r"--smooth runs the model, which needs torch: pip install"):
        Smooth().apply(load(tiny.make("llama")[1]), context(tmp_path))


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="rounds nothing"):
        Awq("float16")
    with pytest.raises(UsageError, match="unknown scheme"):
        Awq("int44")
    result = CliRunner().invoke(cli, ["quantize", "--awq", "--smooth", "0.5"])
    assert "give one of them" in str(result.exception or result.output)


def test_the_command_writes_a_model_that_verify_takes_for_the_same(tmp_path: Path) -> None:
    _, source = tiny.make("llama")
    words = ["quantize", str(source), "--scheme", "int8", "--awq", "--to", "gguf", "--no-verify"]
    result = CliRunner().invoke(cli, [*words, "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    subject = locate(tmp_path / "gguf")
    assert subject.passes == ("awq",) and not subject.is_student
    (recorded,) = subject.manifest["recipe"]["passes"]
    assert recorded["awq"]["grid"] == "int8"
    digest = hashlib.sha256(data.text("calibration").encode()).hexdigest()
    assert subject.manifest["recipe"]["passes_text_sha256"] == {"awq": digest}


def test_a_recipe_can_name_it(tmp_path: Path) -> None:
    content = {"source": "in", "pass": [{"name": "awq", "grid": "q4_k_m"}], "quantize": {"bits": 4}}
    recipe = recipe_file.from_dict(content, "here", tmp_path)
    assert recipe.passes == (Awq("q4_k_m"),)
