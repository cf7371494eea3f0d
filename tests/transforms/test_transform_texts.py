"""Transforms that run the model take the options of calibration, and manifests say on which text."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from click.testing import CliRunner

from gpt54_convert import data
from gpt54_convert.cli import cli
from gpt54_convert.core.passes import Context
from gpt54_convert.core.report import Report
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.forward.batch import Document
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import fingerprint
from gpt54_convert.recipe import Export, Quantize, Recipe
from gpt54_convert.transforms.awq import Awq
from gpt54_convert.transforms.smooth import Smooth
from gpt54_convert.verify.artifact import locate
from gpt54_convert.verify.documents import read_text
from gpt54_convert.verify.options import VerifyOptions

WORDS = {"awq": ["--awq"], "smooth": ["--smooth", "0.5"]}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Another text than the package's."""
    path = tmp_path / "mine.txt"
    path.write_text(data.text("heldout")[2_000:60_000])
    return path


@pytest.mark.parametrize("name", WORDS)
def test_the_command_calibrates_on_what_it_is_told(name: str, own: Path, tmp_path: Path) -> None:
    source = tiny.make("llama")[1]
    words = ["quantize", str(source), "--scheme", "int8", *WORDS[name], "--to", "gguf", "--no-verify"]
    words += ["--calibration", str(own), "--calibration-samples", "5", "--calibration-length", "20"]
    result = CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    subject = locate(tmp_path / "out" / "gguf")
    (recorded,) = subject.manifest["recipe"]["passes"]
    entry = recorded[name]
    assert (entry["calibration"], entry["calibration_samples"]) == (str(own), 5)
    assert entry["calibration_length"] == 20 and entry["calibration_seed"] == 0
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    assert subject.manifest["recipe"]["passes_text_sha256"] == {name: digest}
    with pytest.raises(UsageError, match=r"mine\.txt.*must not be judged on text it was fitted to"):
        read_text(VerifyOptions(text=own), subject.fitted)


@pytest.mark.parametrize("step", [Awq(), Smooth()])
def test_without_options_a_pass_takes_fewer_documents(step: Any) -> None:
    assert (step.calibration_samples, step.calibration_length) == (48, 128)
    result = CliRunner().invoke(cli, ["pipe", type(step).__name__.lower(), "--help"])
    assert "--calibration-samples" in result.output and "48" in result.output


@pytest.mark.parametrize(("step", "module"), [(Awq, "_inputs"), (Smooth, "_maxima")])
def test_what_runs_are_the_documents_asked_for(
    step: Any, module: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt54_convert.transforms import _inputs, _maxima

    collector = {"_inputs": _inputs, "_maxima": _maxima}[module]
    seen: list[list[Document]] = []
    right = collector.collect

    def collect(checkpoint: Any, documents: list[Document], *rest: Any) -> Any:
        seen.append(documents)
        return right(checkpoint, documents, *rest)

    monkeypatch.setattr(collector, "collect", collect)
    checkpoint = load(tiny.make("llama")[1])
    for seed in (0, 1, 0):
        options = {"calibration_samples": 6, "calibration_length": 24, "calibration_seed": seed}
        step(calibration=own, **options).apply(checkpoint, Context(Report(), tmp_path, 1))
    assert all([len(d.tokens) for d in documents] == [24] * 6 for documents in seen)
    drawn = [np.concatenate([document.tokens for document in documents]) for documents in seen]
    assert np.array_equal(drawn[0], drawn[2]) and not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("step", [Awq, Smooth])
@pytest.mark.parametrize("text", ["x", "Two words. " * 30])
def test_one_short_text_is_enough(step: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(text)
    after = step(calibration=path).apply(load(tiny.make("llama")[1]), Context(Report(), tmp_path, 1))
    rows = [tensor.float_rows(0, tensor.row_count) for tensor in after.tensors.values()]
    assert all(np.isfinite(values).all() for values in rows)


@pytest.mark.parametrize("step", [Awq, Smooth])
def test_text_of_no_use_is_refused(step: Any, tmp_path: Path) -> None:
    checkpoint, context = load(tiny.make("llama")[1]), Context(Report(), tmp_path, 1)
    with pytest.raises(InputError, match=r"--calibration .*absent\.txt"):
        step(calibration=tmp_path / "absent.txt").apply(checkpoint, context)
    with pytest.raises(UsageError, match="--calibration-samples must be at least 1"):
        step(calibration_samples=0)


def test_a_changed_text_is_other_work(own: Path, tmp_path: Path) -> None:
    """What an interrupted job has kept is not taken for another text's."""
    checkpoint = load(tiny.make("llama")[1])
    recipe = Recipe(tmp_path, Quantize(), Export(tmp_path / "out"), (Smooth(calibration=own),))
    before = fingerprint(recipe, checkpoint)
    own.write_text(data.text("heldout")[4_000:50_000])
    assert fingerprint(recipe, checkpoint) != before
