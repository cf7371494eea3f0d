"""Smoothing keeps the function, and helps where a few channels are far larger than the rest."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from hf_models import loaded, model_of, outputs
from poison import poisoned
from safetensors.torch import load_file, save_file

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError, InternalError, UnsupportedError, UsageError
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Export, Quantize, Recipe
from gpt54_convert.transforms import _folds, _scaling, smooth
from gpt54_convert.transforms.smooth import Smooth

# kind -> exchanges in each of its layers, and outside them
KINDS = {
    "llama": (4, 1),
    "llama-tied": (4, 0),
    "llama-bias": (4, 1),
    "qwen2": (4, 1),
    "qwen3": (4, 1),
    "gemma3": (4, 0),
    "gpt2": (3, 0),
    "bert": (1, 0),
}


def context(folder: Path) -> Context:
    return Context(Report(), folder, 1)


@pytest.mark.parametrize("kind", [*KINDS, "gpt54", "gpt54-tied"])
def test_the_function_is_kept(kind: str, tmp_path: Path) -> None:
    _, source = tiny.make(kind)
    before = load(source)
    after = Smooth(0.6).apply(before, context(tmp_path))
    wanted, found = outputs(loaded(kind, source, before)), outputs(loaded(kind, source, after))
    assert (wanted - found).abs().max() <= 2e-5 * wanted.abs().max()
    changed = sum(
        not np.array_equal(t.float_rows(0, t.row_count), after.tensors[n].float_rows(0, t.row_count))
        for n, t in before.tensors.items()
    )
    assert changed >= (6 if kind == "bert" else 8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_is_found(kind: str) -> None:
    model, source = tiny.make(kind)
    each, outside = KINDS[kind]
    assert len(_folds.folds(load(source))) == each * model.config.num_hidden_layers + outside


def test_a_t5_has_places_in_both_stacks() -> None:
    found = _folds.folds(load(tiny.make("gpt54")[1]))
    # encoder: 4 in each of 3 layers; decoder: 6 in each of 2; the encoder's last norm; the last norm
    assert len(found) == 4 * 3 + 6 * 2 + 2
    last = next(f for f in found if "encoder.final_layer_norm.weight" in f.sources)
    assert len(last.targets) == 2 * 2


def with_outliers(source: Path, folder: Path, factor: float) -> Path:
    """The same function with some channels behind every norm, and of every value, `factor` times larger."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for layer in range(2):
        stem = f"model.layers.{layer}."
        for norm, matrices in readers.items():
            weights[f"{stem}{norm}.weight"][[3, 17]] *= factor
            for matrix in matrices:
                weights[f"{stem}{matrix}.weight"][:, [3, 17]] /= factor
        weights[f"{stem}mlp.up_proj.weight"][[5, 40]] *= factor
        weights[f"{stem}mlp.down_proj.weight"][:, [5, 40]] /= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_outliers_cost_less(tmp_path: Path) -> None:
    _, plain = tiny.make("llama")
    source = with_outliers(plain, tmp_path / "in", 60.0)
    exact = outputs(model_of("llama", plain))
    assert (outputs(model_of("llama", source)) - exact).abs().max() < 1e-4 * exact.abs().max()

    def error(name: str, *passes: Smooth) -> float:
        export = Export(tmp_path / name, to=("safetensors",))
        run(Recipe(source, Quantize(scheme="w8a8"), export, passes), Report())
        found = outputs(model_of("llama", tmp_path / name / "safetensors"))
        return float((found - exact).square().sum() / exact.square().sum())

    rough, smoothed = error("rough"), error("smoothed", Smooth(0.5))
    assert smoothed < 0.1 * rough


def test_alpha_moves_what_it_says(tmp_path: Path) -> None:
    """α = 1 leaves every channel behind a norm with the same range; α = 0 every column of its matrices."""
    _, source = tiny.make("llama-tied")
    after = Smooth(0.0).apply(load(source), context(tmp_path))
    columns = np.maximum.reduce(
        [
            smooth.column_maxima(after.tensors[f"model.layers.0.self_attn.{name}_proj.weight"])
            for name in "qkv"
        ]
    )
    assert np.allclose(columns, 1, rtol=1e-5)
    with pytest.raises(UsageError, match="between 0 and 1"):
        Smooth(1.5)


def test_dead_channels_stay_as_they_are(tmp_path: Path) -> None:
    _, plain = tiny.make("llama-tied")
    folder = tmp_path / "in"
    shutil.copytree(plain, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.input_layernorm.weight"][4] = 0
    for name in "qkv":
        weights[f"model.layers.1.self_attn.{name}_proj.weight"][:, 6] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    after = Smooth().apply(load(folder), context(tmp_path))
    values = {n: t.float_rows(0, t.row_count) for n, t in after.tensors.items()}
    assert all(np.isfinite(value).all() for value in values.values())
    assert values["model.layers.0.input_layernorm.weight"][4] == 0
    before = weights["model.layers.1.input_layernorm.weight"][6].item()
    assert values["model.layers.1.input_layernorm.weight"][6] == np.float32(before)


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    source = load(tiny.make("llama")[1])

    down = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(InputError, match=r"not finite"):
        Smooth().apply(poisoned(source, down, np.nan), context(tmp_path))
    with pytest.raises(InputError, match=r"what enters its column .* is not finite"):
        Smooth().apply(poisoned(source, "model.layers.0.input_layernorm.weight", np.inf), context(tmp_path))


def test_an_undescribed_model_is_refused(tmp_path: Path) -> None:
    unknown = replace(load(tiny.make("llama")[1]), architecture=None)
    with pytest.raises(UnsupportedError, match="described architecture"):
        Smooth().apply(unknown, context(tmp_path))


def test_a_wrong_table_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that leaves out one reader of a norm changes the function, and that is noticed."""
    right = _folds.folds

    def wrong(checkpoint: Checkpoint) -> list[_folds.Fold]:
        return [replace(f, targets=f.targets[:1]) for f in right(checkpoint)]

    monkeypatch.setattr(_scaling, "folds", wrong)
    with pytest.raises(InternalError, match="changed this model's outputs"):
        Smooth().apply(load(tiny.make("llama")[1]), context(tmp_path))
