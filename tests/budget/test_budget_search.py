"""Budgets: sizes hold to the byte, losses are measured, and a uniform scheme wins where it is better."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from gpt54_convert import data, dry_run, loaders, pipeline
from gpt54_convert.budget import search as search_module
from gpt54_convert.budget import study as study_module
from gpt54_convert.budget.space import CANDIDATES, Space
from gpt54_convert.core.report import Report
from gpt54_convert.errors import MeasureError, OutputError, UnsupportedError, UsageError
from gpt54_convert.plan import plan
from gpt54_convert.recipe import Export, Quantize, Recipe
from gpt54_convert.summary import groups


@pytest.fixture(autouse=True)
def _little_text(monkeypatch, request):
    """Tiny models need little text."""
    if "slow" not in request.keywords:
        for name in ("_GRADIENT_TOKENS", "_ROLE_TOKENS", "_JUDGE_TOKENS"):
            monkeypatch.setattr(study_module, name, 520)
        monkeypatch.setattr(study_module, "_CONTEXT", 64)


class Notes(Report):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def recipe(folder, output=Path("unused"), to=("gguf",), **step):
    step = {"method": "search", **step}
    return Recipe(Path(folder), Quantize(**step), Export(output=output, to=to, threads=1))


def planned(folder, to=("gguf",), report=None, **step):
    return plan(recipe(folder, to=to, **step), loaders.load(folder), report or Report())[0]


def count(folder):
    return loaders.load(folder).parameter_count


def smallest(folder, **step):
    with pytest.raises(UnsupportedError) as caught:
        planned(folder, target_bpw=0.5, **step)
    return caught.value


@pytest.mark.parametrize("container", ["gguf", "safetensors"])
def test_the_file_is_of_the_size_that_was_planned_and_within_the_target(tmp_path, container):
    folder = tiny.make("llama")[1]
    done = pipeline.run(recipe(folder, tmp_path, (container,), target_bpw=10.0), Report())[0]
    weights = [path for path in done.files if path.suffix in (".gguf", ".safetensors")]
    size = sum(path.stat().st_size for path in weights)
    assert size <= 10.0 * count(folder) / 8
    facts = json.loads((tmp_path / container / "manifest.json").read_text())["recipe"]["budget"]
    assert facts["target"] == {"target_bpw": 10.0}
    if container == "gguf":
        assert facts["chosen"]["size_bytes"] == size
    assert len({row["grid"] for row in done.tensors if "sensitivity" in row}) > 1
    losses = [tried["loss"] for tried in facts["tried"]]
    assert facts["chosen"]["loss"] == min(losses)


def test_no_byte_is_left_that_could_have_been_used():
    """Any single tensor moved to its next larger grid breaks the target, or would not lose less."""
    folder = tiny.make("llama")[1]
    found = planned(folder, target_bpw=11.0)
    limit = int(11.0 * count(folder) / 8)
    assert found.size_bytes <= limit
    from gpt54_convert.quantize.grids import grid

    steps = [
        found.checkpoint.tensors[name].row_count
        * (grid(other).row_bytes(64) - found.assignments[name].grid.row_bytes(64))
        for name in found.losses
        for other in CANDIDATES
        if found.checkpoint.tensors[name].columns == 64 and grid(other).fits(64)
    ]
    assert limit - found.size_bytes < max(steps)


def test_an_impossible_target_names_the_smallest_one_which_then_works():
    folder = tiny.make("llama")[1]
    error = smallest(folder)
    assert "gguf cannot hold this model in" in str(error)
    possible = float(str(error).split("--target-bpw ")[1].rstrip(")"))
    assert planned(folder, target_bpw=possible).size_bytes <= possible * count(folder) / 8
    with pytest.raises(UnsupportedError):
        planned(folder, target_bpw=possible - 0.01)


def test_target_size_takes_units_and_refuses_nonsense():
    folder = tiny.make("llama")[1]
    size = int(12 * count(folder) / 8)
    assert planned(folder, target_size=str(size)).size_bytes <= size
    with pytest.raises(UsageError, match="not a size"):
        Quantize(target_size="small")


def test_equal_recipes_give_equal_plans():
    folder = tiny.make("llama")[1]
    first, second = (planned(folder, target_bpw=9.0) for _ in range(2))
    assert first.assignments == second.assignments
    assert dict(first.losses) == dict(second.losses)
    assert first.budget == second.budget


def test_max_kl_finds_small_files_that_keep_to_it():
    folder = tiny.make("llama")[1]
    rough, fine = (planned(folder, max_kl=limit) for limit in (0.02, 0.002))
    for found, limit in ((rough, 0.02), (fine, 0.002)):
        assert found.budget["chosen"]["loss"] <= limit
    assert rough.size_bytes < fine.size_bytes
    eight = planned(folder, scheme="q8_0")
    assert rough.size_bytes < eight.size_bytes


def test_max_kl_that_nothing_reaches_names_what_can_be_reached():
    with pytest.raises(UnsupportedError, match=r"no mix keeps to --max-kl 1e-13; .*can be met"):
        planned(tiny.make("llama")[1], max_kl=1e-13)


def test_a_mix_that_loses_gives_way_to_the_uniform_scheme(monkeypatch):
    """Estimates turned upside down make a bad mix; the measurement finds out."""
    from gpt54_convert.calibrate.sensitivity import Sensitivity

    honest = Sensitivity.loss
    monkeypatch.setattr(Sensitivity, "loss", lambda self, name, grid: 1 / (1e-9 + honest(self, name, grid)))
    notes = Notes()
    folder = tiny.make("llama")[1]
    found = planned(folder, report=notes, target_bpw=13.0)
    assert found.label != "mix"
    assert any("no mix did better, so the uniform scheme is written" in said for said in notes.said)
    losses = {tried["scheme"]: tried["loss"] for tried in found.budget["tried"]}
    assert losses[found.label] < losses["mix"]
    assert found.size_bytes <= 13.0 * count(folder) / 8


def test_containers_named_together_share_a_plan(monkeypatch):
    """GGUF and compressed-tensors: the same grid wherever both can hold one, unless a uniform scheme wins."""
    monkeypatch.setattr(Space, "uniform", lambda self: iter(()))
    folder = tiny.make("llama")[1]
    whole = recipe(folder, to=("safetensors", "gguf"), target_bpw=11.0)
    plans = {found.container: found for found in plan(whole, loaders.load(folder), Report())}
    shared = set(plans["gguf"].losses) & set(plans["safetensors"].losses)
    assert len(shared) >= 14
    for name in shared:
        assert plans["gguf"].assignments[name].grid == plans["safetensors"].assignments[name].grid, name
    limit = 11.0 * count(folder) / 8
    assert all(found.size_bytes <= limit for found in plans.values())


def test_what_vllm_fuses_shares_a_grid_in_safetensors():
    found = planned(tiny.make("llama")[1], to=("safetensors",), target_bpw=10.5)
    grids = {name: here.grid.name for name, here in found.assignments.items()}
    assert len({grids[name] for name in found.losses}) > 1
    for layer in range(2):
        attention = {grids[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv"}
        gated = {grids[f"model.layers.{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up")}
        assert len(attention) == len(gated) == 1


def test_keep_is_kept():
    found = planned(tiny.make("llama")[1], target_bpw=14.0, keep=("attn.v=float16",))
    kept = [a for a in found.assignments.values() if a.role == "attn.v"]
    assert kept and all(a.grid.name == "float16" and a.reason == "--keep" for a in kept)


def test_an_encoder_is_judged_by_its_hidden_states_and_has_no_kl():
    folder = tiny.make("bert")[1]
    found = planned(folder, to=("safetensors",), target_bpw=14.0)
    assert found.budget["unit"] == "squared error of hidden states"
    with pytest.raises(UsageError, match="--max-kl needs a model with logits"):
        planned(folder, to=("safetensors",), max_kl=0.1)


def test_a_container_that_takes_one_grid_only_gets_the_best_uniform_scheme():
    notes = Notes()
    found = planned(tiny.make("gpt54")[1], to=("safetensors",), report=notes, target_bpw=15.0)
    quantized = {a.grid.name for a in found.assignments.values() if a.grid.kind != "float"}
    assert len(quantized) == 1


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path):
    shown = dry_run.describe(recipe(tiny.make("llama")[1], tmp_path / "out", target_bpw=10.0), Report())
    artifact = shown["artifacts"][0]
    assert artifact["budget"]["chosen"]["size_bytes"] == artifact["totals"]["size_bytes"]
    assert any("sensitivity" in row for row in artifact["tensors"])
    assert not (tmp_path / "out").exists()
    json.dumps(shown)


def test_the_tables_show_what_each_role_and_tensor_costs(tmp_path):
    from click.testing import CliRunner

    from gpt54_convert.cli import cli

    words = [
        "quantize",
        str(tiny.make("llama")[1]),
        "--target-bpw",
        "10",
        "--to",
        "gguf",
        "-o",
        str(tmp_path),
    ]
    dry = CliRunner().invoke(cli, [*words, "--dry-run"])
    assert dry.exit_code == 0 and "est. loss" in dry.stdout and "exact size" in dry.stdout
    assert "calibration tokens held back" in dry.stderr
    plain = CliRunner().invoke(cli, [*words[:2], "--bits", "4", *words[4:], "--dry-run"])
    assert "est. loss" not in plain.stdout
    folded = groups(
        [
            {
                "role": "ffn.up",
                "grid": "q8_0",
                "shape": [4, 32],
                "source_bytes": 9,
                "relative_error": 0.1,
                **extra,
            }
            for extra in ({"sensitivity": 0.25}, {"sensitivity": 0.5})
        ]
    )
    assert folded[0].sensitivity == 0.75


def test_without_torch_there_is_a_sentence(monkeypatch):
    for name in ("gradients", "loss", "sensitivity"):
        monkeypatch.setitem(sys.modules, f"gpt54_convert.calibrate.{name}", None)
        monkeypatch.delattr(f"gpt54_convert.calibrate.{name}", raising=False)
    with pytest.raises(MeasureError, match=r"pip install 'gpt54-convert\[torch\]'"):
        planned(tiny.make("llama")[1], target_bpw=10.0)


def test_the_users_text_is_used_and_a_short_one_refused(tmp_path):
    text = data.text("heldout")
    path = tmp_path / "own.txt"
    path.write_text(text[:120_000], encoding="utf-8")
    folder = tiny.make("llama")[1]
    found = planned(folder, target_bpw=10.0, calibration=path)
    assert found.budget["calibration_text_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(text[:300], encoding="utf-8")
    with pytest.raises(MeasureError, match="cuts the calibration text in three"):
        planned(folder, target_bpw=10.0, calibration=path)


def test_budgets_and_schemes_exclude_each_other():
    with pytest.raises(UsageError, match="--bits and --target-bpw both choose the grids"):
        Quantize(bits=4, target_bpw=4.25)
    with pytest.raises(UsageError, match="--target-bpw and --target-size and --max-kl all choose"):
        Quantize(target_bpw=4.25, target_size="1MB", max_kl=0.1)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="not a positive number"):
            Quantize(target_bpw=value)


@pytest.mark.parametrize("damage", ["nan", "dead"])
def test_broken_and_dead_weights(tmp_path, damage):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "model"
    tiny.make("llama", folder)
    weights = dict(load_file(folder / "model.safetensors"))
    name = "model.layers.1.mlp.down_proj.weight"
    if damage == "nan":
        weights[name][3, 5] = np.nan
    else:
        weights[name][:] = 0
        weights["model.layers.0.mlp.gate_proj.weight"][:, :32] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if damage == "nan":
        with pytest.raises(MeasureError, match="not finite"):
            planned(folder, target_bpw=10.0)
    else:
        found = planned(folder, target_bpw=10.0)
        assert found.losses[name] == 0
        assert np.isfinite(found.budget["chosen"]["loss"])


@pytest.mark.slow
def test_the_embedded_model_at_the_size_of_its_uniform_file_is_far_closer():
    """Measured on held-out text when this was written: 0.0012 nats against 0.0247."""
    from gpt54_convert.calibrate.loss import Loss
    from gpt54_convert.forward.documents import cut

    folder = data.model_path()
    uniform = planned(folder, scheme="int4")
    mix = planned(folder, target_size=str(uniform.size_bytes))
    assert mix.size_bytes <= uniform.size_bytes
    source = loaders.load(folder)
    with Loss(source, cut(data.text("heldout"), source, 1024, 128)) as loss:
        assert loss.of(mix.checkpoint) < 0.25 * loss.of(uniform.checkpoint)


def test_every_candidate_is_a_grid():
    from gpt54_convert.quantize.grids import grid

    assert len({grid(name).name for name in CANDIDATES}) == len(CANDIDATES)
    assert search_module.LABEL == "mix"


def test_what_is_in_the_way_is_told_before_anything_is_measured(tmp_path, monkeypatch):
    _, folder = tiny.make("llama")
    (tmp_path / "gguf").mkdir()
    monkeypatch.setattr(study_module, "Study", lambda *args: pytest.fail("measured in vain"))
    monkeypatch.setattr(search_module, "Study", study_module.Study)
    with pytest.raises(OutputError, match="gguf exists"):
        pipeline.run(recipe(folder, tmp_path, target_bpw=6), Report())


def test_a_full_disk_of_temporary_files_is_an_error_of_the_output(monkeypatch):
    """numpy's own error for it has no number, and would pass for a fault of the program."""
    from gpt54_convert.calibrate.loss import Loss
    from gpt54_convert.forward.documents import cut

    source = loaders.load(tiny.make("llama")[1])
    documents = cut(data.text("heldout"), source, 1024, 128)
    real = open

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def write(self, content):
            raise OSError(28, "No space left on device")

    def opened(path, *args, **options):
        return Full() if "gpt54-answers-" in str(path) else real(path, *args, **options)

    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(OutputError, match="is full"):
        Loss(source, documents)
