"""`quantize` and `convert` look at what they wrote: verdict in the manifest, exit codes, what is skipped."""

import json
import shutil
import sys

import faults
import numpy as np
import pytest
import tiny
from click.testing import CliRunner

from gpt54_convert import cli, loaders
from gpt54_convert.core.report import Report
from gpt54_convert.exporters import safetensors as exporter
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Export, Quantize, Recipe
from gpt54_convert.verify import quick, runners, tensors, tokenizer


@pytest.fixture(scope="module")
def llama():
    return tiny.make("llama")[1]


def call(*arguments):
    result = CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result


def quantize(model, output, *more):
    return call("quantize", model, "--scheme", "int4", "--to", "safetensors", "-o", output, *more)


def recorded(output, container="safetensors"):
    return json.loads((output / container / "manifest.json").read_text())["verification"]


def test_what_was_written_is_verified(llama, tmp_path):
    code, result = quantize(llama, tmp_path)
    assert code == 0
    assert "verified quickly: pass" in result.stdout
    found = recorded(tmp_path)
    assert found["verdict"] == "pass"
    assert found["checks"] == dict.fromkeys(("config", "tokenizer", "tensors", "outputs"), "pass")
    assert 0 < found["outputs"]["kl_mean_nats"] < 0.5
    assert "Run beside the float model" in (tmp_path / "safetensors" / "README.md").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name != "safetensors"]
    # The paths of the temporary folder are in no verdict.
    assert ".partial" not in (tmp_path / "safetensors" / "manifest.json").read_text()


def test_convert_verifies_too(llama, tmp_path):
    code, result = call("convert", llama, "--to", "safetensors", "-o", tmp_path, "--json")
    assert code == 0
    assert json.loads(result.stdout)["artifacts"][0]["verification"] == recorded(tmp_path)
    assert recorded(tmp_path)["outputs"]["kl_mean_nats"] == 0


def test_no_verify_skips_it_and_says_so(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "check", None)
    code, result = quantize(llama, tmp_path, "--no-verify")
    assert code == 0
    assert "not verified" in result.stdout
    assert recorded(tmp_path) == {"verdict": "not-verified"}


def test_what_fails_stays_and_exits_3(llama, tmp_path, monkeypatch):
    """A packer that writes rows in the wrong order."""
    put = exporter.FolderSink.put

    def wrong(self, name, start, stop, rows):
        if isinstance(rows, np.ndarray) and "embed" in name:
            rows = np.roll(rows, 1, axis=0)
        put(self, name, start, stop, rows)

    monkeypatch.setattr(exporter.FolderSink, "put", wrong)
    code, result = quantize(llama, tmp_path)
    assert code == 3
    folder = tmp_path / "safetensors"
    assert "embed" in result.stderr
    assert f"look closer with `gpt54-convert verify {folder}`" in result.stderr
    assert recorded(tmp_path)["verdict"] == "fail"
    assert recorded(tmp_path)["checks"]["tensors"] == "fail"
    assert (folder / "model.safetensors").is_file()
    monkeypatch.undo()
    assert call("verify", folder, "--level", "tensors")[0] == 3


def test_a_fault_of_ours_costs_no_artifact_but_never_passes(llama, tmp_path, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(tensors, "check", broken)
    code, result = quantize(llama, tmp_path)
    assert code == 3
    assert "ZeroDivisionError" in result.stderr
    assert recorded(tmp_path)["verdict"] == "fail"
    assert (tmp_path / "safetensors" / "model.safetensors").is_file()


@pytest.mark.parametrize("container", ["safetensors", "gguf"])
def test_without_runtimes_files_and_weights_are_verified(container, llama, tmp_path, monkeypatch):
    for package in ("torch", "llama_cpp", "compressed_tensors", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in runners.discover.names(runners.__name__):
        monkeypatch.delitem(sys.modules, f"{runners.__name__}.{name}", raising=False)
    code, result = call("quantize", llama, "--scheme", "int4", "--to", container, "-o", tmp_path)
    assert code == 0
    notes = [line for line in result.stderr.splitlines() if "not installed" in line]
    assert len(notes) == 1
    assert " and " in notes[0].split(" not installed")[0] and " are not installed" in notes[0]
    assert "pip install" in notes[0]
    assert f"`gpt54-convert verify {tmp_path / container}`" in notes[0]
    found = recorded(tmp_path, container)
    assert found["verdict"] == "could-not-measure"
    assert found["checks"]["tensors"] == found["checks"]["config"] == "pass"
    assert found["checks"]["outputs"] == "could-not-measure"


def test_a_large_model_is_sampled_and_not_run(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "RUN_WEIGHTS", 1000)
    code, result = quantize(llama, tmp_path)
    assert code == 0
    assert "outputs skipped" in result.stdout
    assert recorded(tmp_path)["checks"]["outputs"] == "skipped"
    assert recorded(tmp_path)["verdict"] == "pass"


@pytest.mark.parametrize("name", ["rope rows permuted", "two layers swapped", "embedding shifted by a row"])
def test_a_sample_of_rows_finds_what_is_wrong_everywhere(name, llama, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "_LEAST", 1024)
    bad = faults.copy(llama, tmp_path / "bad", faults.SOURCE[name][1])
    found, rows = tensors.check(loaders.load(llama), loaders.load(bad), Report(), budget=1)
    assert found[0].outcome == "fail"
    assert any(row.get("sampled") for row in rows)
    good, _ = tensors.check(loaders.load(llama), loaders.load(llama), Report(), budget=1)
    assert [check.outcome for check in good] == ["pass"]


def test_vocabularies_are_compared_without_any_runtime(llama, tmp_path):
    source = loaders.load(llama)
    assert tokenizer.check_structure(source, source)[0].outcome == "pass"
    bad = shutil.copytree(llama, tmp_path / "bad")
    faults.change_tokenizer(bad, faults.merge_missing)
    found = tokenizer.check_structure(source, loaders.load(bad))
    assert [check.outcome for check in found] == ["fail"]
    assert "merges" in found[0].detail


def test_calibrated_codes_may_move_further_but_not_anywhere(llama, tmp_path):
    """A solver that looks at activations gives up weight error; a permuted matrix is still no rounding."""
    source = loaders.load(llama)
    noisy = faults.copy(llama, tmp_path / "noisy", _noise)
    export = Export(output=tmp_path / "out", to=("safetensors",), verify=False)
    run(Recipe(noisy, Quantize(scheme="int4"), export), Report())
    moved = loaders.load(tmp_path / "out" / "safetensors")
    assert tensors.check(source, moved, Report())[0][0].outcome == "fail"
    assert tensors.check(source, moved, Report(), calibrated=True)[0][0].outcome == "pass"
    bad = faults.copy(llama, tmp_path / "bad", faults.layers_swapped)
    assert tensors.check(source, loaders.load(bad), Report(), calibrated=True)[0][0].outcome == "fail"


def _noise(weights, config):
    """A quarter of each matrix's size, in directions that no input may have."""
    del config
    generator = np.random.default_rng(0)
    for name, value in weights.items():
        if "_proj" in name and value.ndim == 2:
            noise = generator.standard_normal(value.shape).astype(np.float32)
            weights[name] = value + 0.25 * value.std() * noise
