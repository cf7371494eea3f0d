"""Every fault, in every container, ends in exit 3 (or 1 where the file cannot be read); a clean one in 0."""

import shutil

import faults
import pytest
import tiny

from gpt54_convert import data
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Export, Quantize, Recipe
from gpt54_convert.verify import verify
from gpt54_convert.verify.options import VerifyOptions

CONTAINERS = ["safetensors", pytest.param("gguf", marks=pytest.mark.llama_cpp)]
QUICK = VerifyOptions(tokens=640, context=64, threads=1)
# A tiny random T5's tokenizer has no character map that GGUF could hold, so its ids are not compared there.
OUTPUTS = VerifyOptions(level="outputs", tokens=640, context=64, threads=1)


def export(folder, output, container):
    run(
        Recipe(folder, Quantize(scheme="int4"), Export(output=output, to=(container,), verify=False)),
        Report(),
    )
    return output / container


def failed(verdict):
    return {check.kind for check in verdict.failures}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("variant", ["llama", "llama-bias"])
def test_a_clean_artifact_passes(variant, container, tmp_path):
    _, folder = tiny.make(variant)
    verdict = verify(export(folder, tmp_path / "out", container), None, QUICK)
    assert verdict.exit_code == 0, verdict.failures
    assert {check.kind for check in verdict.checks} == {"files", "config", "tokenizer", "tensors", "outputs"}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_clean_embedded_model_passes(container, tmp_path):
    verdict = verify(export(data.model_path(), tmp_path / "out", container), None, QUICK)
    assert verdict.exit_code == 0, verdict.failures


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", faults.SOURCE)
def test_a_fault_of_conversion_fails(name, container, tmp_path):
    variant, change, first = faults.SOURCE[name]
    _, good = tiny.make(variant)
    bad = faults.copy(good, tmp_path / "bad", change)
    verdict = verify(export(bad, tmp_path / "out", container), good, QUICK)
    assert verdict.exit_code == 3
    if first:
        named = next(check for check in verdict.failures if (check.kind, check.name) == ("tensors", "first"))
        assert first in named.detail


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", faults.TOKENIZER)
def test_a_fault_of_the_tokenizer_fails(name, container, tmp_path):
    if (name, container) in faults.CANNOT_SAY:
        pytest.skip("this container cannot hold the fault")
    _, folder = tiny.make("llama")
    good, bad = shutil.copytree(folder, tmp_path / "good"), shutil.copytree(folder, tmp_path / "bad")
    for where, change in zip((good, bad), faults.TOKENIZER[name], strict=True):
        faults.change_tokenizer(where, change)
    verdict = verify(export(bad, tmp_path / "out", container), good, QUICK)
    assert verdict.exit_code == 3
    assert "tokenizer" in failed(verdict)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", faults.CODES)
def test_a_fault_of_packing_fails(name, container, tmp_path):
    _, good = tiny.make("llama")
    artifact = export(good, tmp_path / "out", container)
    faults.change_codes(artifact, container, faults.CODES[name])
    verdict = verify(artifact, good, QUICK)
    assert verdict.exit_code == 3
    named = next(check for check in verdict.failures if (check.kind, check.name) == ("tensors", "first"))
    assert "first ffn.down of layer 1" in named.detail


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_truncated_file_is_refused(container, tmp_path):
    _, good = tiny.make("llama")
    artifact = export(good, tmp_path / "out", container)
    path = max(artifact.iterdir(), key=lambda file: file.stat().st_size)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 100)
    assert verify(artifact, good, QUICK).exit_code == 3  # the manifest knows its size
    (artifact / "manifest.json").unlink()
    with pytest.raises(InputError):
        verify(artifact, good, QUICK)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["two layers swapped", "embedding shifted by a row", "norm off by one"])
def test_outputs_alone_catch_what_breaks_a_model(name, container, tmp_path):
    variant, change, _ = faults.SOURCE[name]
    _, good = tiny.make(variant)
    bad = faults.copy(good, tmp_path / "bad", change)
    verdict = verify(export(bad, tmp_path / "out", container), good, OUTPUTS)
    assert verdict.exit_code == 3
    assert failed(verdict) == {"outputs"}


def test_the_first_layer_is_named_by_its_outputs_too(tmp_path):
    _, good = tiny.make("llama")
    bad = faults.copy(good, tmp_path / "bad", faults.norm_off_by_one)
    verdict = verify(export(bad, tmp_path / "out", "safetensors"), good, QUICK)
    named = next(check for check in verdict.failures if check.name == "first layer")
    assert "behind layer 1" in named.detail
    assert verdict.split["quantization"]["kl_mean_nats"] < verdict.split["conversion"]["kl_mean_nats"]
