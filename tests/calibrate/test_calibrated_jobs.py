"""`quantize --method …` that runs the model: whole jobs, interrupted ones, and what is refused."""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from gpt54_convert import loaders, pipeline
from gpt54_convert.calibrate import solve
from gpt54_convert.core.report import Report
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.quantize.solvers import auto
from gpt54_convert.recipe import Export, Quantize, Recipe
from gpt54_convert.verify.verdict import PASS

QUICK = {"calibration_samples": 8, "calibration_length": 32}


def run(folder: Path, output: Path, to=("gguf", "safetensors"), **options):
    recipe = Recipe(folder, Quantize(**QUICK, **options), Export(output=output, to=to, threads=1))
    return pipeline.run(recipe, Report())


def codes(path: Path, name: str) -> np.ndarray:
    tensor = loaders.load(path).tensors[name]
    return tensor.read_codes(0, tensor.row_count).codes


@pytest.mark.parametrize("method", ["imatrix", "gptq"])
def test_one_walk_serves_all_containers(method, tmp_path, monkeypatch):
    _, folder = tiny.make("qwen2")
    walks = []
    found = solve._Solver
    monkeypatch.setattr(solve, "_Solver", lambda *args: walks.append(1) or found(*args))
    artifacts = run(folder, tmp_path, method=method, scheme="int4")
    assert len(walks) == 1
    assert [artifact.verdict.outcome for artifact in artifacts] == [PASS, PASS] or all(
        check.outcome == PASS
        for artifact in artifacts
        for check in artifact.verdict.checks
        if check.kind == "tensors"
    )
    name = "model.layers.1.mlp.down_proj.weight"
    gguf = next(artifacts[0].folder.glob("*.gguf"))
    np.testing.assert_array_equal(codes(gguf, name), codes(artifacts[1].folder, name))
    facts = json.loads((artifacts[0].folder / "manifest.json").read_text())["recipe"]["calibration"]
    assert facts["documents"] == 8 and facts["tokens"] == 256 and len(facts["text_sha256"]) == 64


def test_other_grids_get_their_own_walk(tmp_path, monkeypatch):
    _, folder = tiny.make("gpt54")
    walks = []
    found = solve._Solver
    monkeypatch.setattr(solve, "_Solver", lambda *args: walks.append(1) or found(*args))
    run(folder, tmp_path, method="gptq", scheme="int4", keep=("ffn.down=int8-g32",), to=("gguf",))
    assert len(walks) == 1
    with pytest.raises(UnsupportedError):  # a T5 in safetensors takes one grid only
        run(folder, tmp_path, method="gptq", scheme="q4_0", to=("safetensors",))


def test_auto_keeps_what_errs_least_on_text_it_did_not_see(tmp_path, monkeypatch):
    """Of every matrix, by a plain product over the held-out moment."""
    _, folder = tiny.make("llama")
    met, best = {}, solve._Solver._best

    def watched(visitor, name, weight, grid, seen):
        q = met[name] = best(visitor, name, weight, grid, seen)
        error = [
            each.dequantize() - weight for each in (q, *auto.candidates(weight, grid, seen.fit).values())
        ]
        losses = [float(np.trace(e @ seen.held.moment @ e.T)) for e in error]
        assert losses[0] <= min(losses[1:]) * 1.001, name
        return q

    monkeypatch.setattr(solve._Solver, "_best", watched)
    run(folder, tmp_path, ("gguf",), method="auto", scheme="int4")
    assert len(met) > 10


class StoppedError(Exception):
    pass


def test_an_interrupted_walk_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch):
    _, folder = tiny.make("llama")
    whole = run(folder, tmp_path / "whole", ("gguf",), method="gptq", scheme="int4")
    solved, save = [], solve.Store.save

    def break_off(store, name, *rest):
        if len(solved) == 9:  # within the second layer
            raise StoppedError
        solved.append(name)
        save(store, name, *rest)

    monkeypatch.setattr(solve.Store, "save", break_off)
    with pytest.raises(StoppedError):
        run(folder, tmp_path / "parts", ("gguf",), method="gptq", scheme="int4")
    assert [path.name for path in (tmp_path / "parts").iterdir() if not path.name.startswith(".")] == []
    again = []
    monkeypatch.setattr(
        solve.Store, "save", lambda store, name, *rest: (again.append(name), save(store, name, *rest))
    )
    parts = run(folder, tmp_path / "parts", ("gguf",), method="gptq", scheme="int4")
    assert not set(again) & set(solved[:7]), "the first layer was solved again"
    assert whole[0].files[0].name == parts[0].files[0].name
    for one, other in zip(whole[0].files, parts[0].files, strict=True):
        if one.suffix == ".gguf":
            assert one.read_bytes() == other.read_bytes()
    assert not list((tmp_path / "parts").glob(".*")), "the workspace is left behind"


def test_other_text_is_other_work(tmp_path):
    _, folder = tiny.make("llama")
    some = tmp_path / "some.txt"
    some.write_text("It was a dark and stormy night, and nobody was about. " * 40)
    default = run(folder, tmp_path / "a", ("gguf",), method="gptq", scheme="int4")
    own = run(folder, tmp_path / "b", ("gguf",), method="gptq", scheme="int4", calibration=some)
    name = "model.layers.0.mlp.down_proj.weight"
    files = [next(found[0].folder.glob("*.gguf")) for found in (default, own)]
    assert (codes(files[0], name) != codes(files[1], name)).any()


@pytest.mark.parametrize("scheme", ["q4_k_m", "q2_k", "iq4_xs", "int8-channel"])
def test_every_kind_of_scheme_can_be_calibrated(scheme, tmp_path):
    _, folder = tiny.make("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    artifact = run(
        folder,
        tmp_path,
        ("gguf",) if scheme != "int8-channel" else ("safetensors",),
        method="gptq",
        scheme=scheme,
    )[0]
    checks = [check for check in artifact.verdict.checks if check.kind == "tensors"]
    assert checks and all(check.outcome == PASS for check in checks), [c.detail for c in checks]


def test_one_token_is_enough_to_run_and_never_worse_than_rounding(tmp_path):
    _, folder = tiny.make("llama")
    some = tmp_path / "one.txt"
    some.write_text("a")
    artifact = run(folder, tmp_path / "out", ("gguf",), method="gptq", scheme="int4", calibration=some)[0]
    assert all(check.outcome == PASS for check in artifact.verdict.checks if check.kind == "tensors")


def test_without_torch_it_says_what_to_install(tmp_path, monkeypatch):
    _, folder = tiny.make("llama")
    true_import = builtins.__import__

    def no_torch(name, *args, **kwargs):
        if name == "gpt54_convert.calibrate.walk":
            raise ImportError("No module named 'torch'", name="torch")
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    with pytest.raises(
        UnsupportedError, match=r"torch is not installed; pip install 'gpt54-convert\[torch\]'"
    ):
        run(folder, tmp_path / "out", method="gptq", scheme="int4")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_plan_needs_no_torch(tmp_path):
    _, folder = tiny.make("llama")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['x', 'quantize', {str(folder)!r}, '--method', 'gptq', '--dry-run']\n"
        "from gpt54_convert.cli import main\nmain()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "int4-g32" in done.stdout
