"""`gpt54-convert verify` as users run it: exit codes, reports, refusals."""

import json
import shutil
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny
from click.testing import CliRunner

from gpt54_convert import cli, data, pipeline
from gpt54_convert.core.report import Report
from gpt54_convert.forward.batch import Document, stack
from gpt54_convert.loaders import load
from gpt54_convert.pipeline import run
from gpt54_convert.prune.step import Prune
from gpt54_convert.recipe import Convert, Export, Quantize, Recipe
from gpt54_convert.verify import overlap, runners, stages, tokenizer
from gpt54_convert.verify.options import VerifyOptions

FEW = ["--tokens", "640", "--context", "64", "--threads", "1"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Float safetensors of the tiny llama: exact in its runtime."""
    output = tmp_path_factory.mktemp("verify")
    _, folder = tiny.make("llama")
    run(Recipe(folder, Convert(), Export(output=output, to=("safetensors",), verify=False)), Report())
    return output / "safetensors"


def call(*arguments):
    result = CliRunner().invoke(cli.cli, [str(argument) for argument in arguments])
    code = getattr(result.exception, "exit_code", result.exit_code) if result.exception else result.exit_code
    return code, result


def test_reports(artifact, tmp_path):
    files = [tmp_path / name for name in ("junit.xml", "summary.md", "page.html")]
    code, result = call(
        "verify", artifact, *FEW, "--json", "--junit", files[0], "--markdown", files[1], "--html", files[2]
    )
    assert code == 0
    found = json.loads(result.stdout)
    assert found["schema"] == "gpt54-convert/verify/1"
    assert found["verdict"] == "pass"
    assert found["kl_mean_nats"] == 0
    assert found["noise_floor"]["kl_mean_nats"] < 1e-9
    assert set(found["split"]) == {"conversion", "quantization", "runtime", "total"}
    suite = ElementTree.parse(files[0]).getroot()
    assert int(suite.get("tests")) == len(found["checks"]) == len(suite.findall("testcase"))
    assert suite.get("failures") == suite.get("errors") == "0"
    assert "| kl_mean_nats | 0 |" in files[1].read_text()
    page = files[2].read_text()
    assert page.count("<svg") == page.count("</svg>") >= 3
    assert "http" not in page.split("<body>")[0]
    assert "<script" not in page


def test_the_terminal_shows_the_verdict(artifact):
    code, result = call("verify", artifact, *FEW, "--level", "outputs", "-v")
    assert code == 0
    assert "Verdict: pass" in result.stdout


def test_a_gate_that_is_missed_exits_3(artifact):
    code, result = call("verify", artifact, *FEW, "--level", "outputs", "--gate", "perplexity<=2", "--json")
    assert code == 3
    assert json.loads(result.stdout)["checks"][-1]["outcome"] == "fail"


def test_a_baseline_is_a_gate(artifact, tmp_path):
    _, result = call("verify", artifact, *FEW, "--level", "outputs", "--json")
    old = json.loads(result.stdout)
    (tmp_path / "old.json").write_text(json.dumps(old))
    code, _ = call("verify", artifact, *FEW, "--level", "outputs", "--baseline", tmp_path / "old.json", "-q")
    assert code == 0
    (tmp_path / "old.json").write_text(json.dumps({**old, "perplexity": 1.5}))
    gate = ["--baseline", tmp_path / "old.json", "--gate", "perplexity<=1.1*baseline"]
    assert call("verify", artifact, *FEW, "--level", "outputs", *gate, "-q")[0] == 3


def test_too_little_text_exits_4(artifact, tmp_path):
    (tmp_path / "short.txt").write_text("Only a few words.")
    code, result = call("verify", artifact, "--text", tmp_path / "short.txt", "--json")
    assert code == 4
    assert "too few" in json.loads(result.stdout)["checks"][-1]["detail"]


def test_a_missing_runtime_exits_4(artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    monkeypatch.delitem(sys.modules, "gpt54_convert.verify.runners.transformers_packed", raising=False)
    code, result = call("verify", artifact, *FEW, "--level", "outputs", "--json")
    assert code == 4
    assert "pip install" in json.loads(result.stdout)["checks"][-1]["detail"]


def test_calibration_text_is_refused(artifact, tmp_path):
    (tmp_path / "text.txt").write_text(data.text("heldout")[:30_000] + data.text("calibration")[5_000:9_000])
    code, result = call("verify", artifact, "--text", tmp_path / "text.txt")
    assert code == 2
    assert "calibration" in str(result.exception)


def test_what_is_not_there_exits_1(tmp_path):
    assert call("verify", tmp_path / "nothing")[0] == 1
    assert call("verify", tmp_path)[0] == 1


def test_without_a_manifest_the_model_must_be_named(artifact, tmp_path):
    copied = shutil.copytree(artifact, tmp_path / "copy")
    (copied / "manifest.json").unlink()
    assert call("verify", copied)[0] == 2
    assert call("verify", copied, "--against", tiny.make("llama")[1], "--level", "tensors", "-q")[0] == 0


_FILE_BELOW = {"name": "../../other", "size_bytes": 1, "sha256": ""}


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        *(("outputs", content) for content in (None, [], "text", [{}], [_FILE_BELOW])),
        *(("tensors", content) for content in (None, "text", [{}], [{"name": "a"}])),
        *(("recipe", content) for content in (None, [], {"quantize": None}, {"passes": None})),
        *(("source", content) for content in (None, "text", {"path": 3})),
    ],
)
def test_a_manifest_that_was_edited_is_refused(artifact, entry, content, tmp_path):
    copied = shutil.copytree(artifact, tmp_path / "copy")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest[entry] = content
    if content is None:
        del manifest[entry]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    code, result = call("verify", copied, "--level", "tensors")
    assert code == 1
    assert f"manifest.json: {entry!r} is not as it was written" in str(result.exception)


def test_a_changed_file_exits_3(artifact, tmp_path):
    copied = shutil.copytree(artifact, tmp_path / "copy")
    (copied / "config.json").write_text((copied / "config.json").read_text() + " ")
    code, result = call("verify", copied, "--json")
    assert code == 3
    assert "config.json has " in json.loads(result.stdout)["checks"][0]["detail"]


@pytest.mark.llama_cpp
def test_a_runtime_that_crashes_gets_a_sentence(tmp_path, monkeypatch):
    module = runners.load("llama_cpp")
    module._probe.cache_clear()
    monkeypatch.setattr(module, "_PROBE", "import os; os.abort()")
    _, folder = tiny.make("llama")
    export = Export(output=tmp_path, to=("gguf",))
    (made,) = run(Recipe(folder, Convert(), export), Report())
    assert made.verdict.outcome == "fail"
    assert "llama.cpp crashes on it (SIGABRT" in made.verdict.failures[0].detail
    code, result = call("verify", made.folder, *FEW)
    assert code == 1
    assert "SIGABRT" in str(result.exception)
    module._probe.cache_clear()


def test_every_container_has_one_runner():
    found = [c for name in runners.discover.names(runners.__name__) for c in runners.containers(name)]
    assert len(found) == len(set(found))
    assert {"gguf", "safetensors"} <= set(found)


def test_counter_examples_shrink():
    assert tokenizer.shrink("some words, then a ß and more", lambda text: "ß" in text) == "ß"


def test_the_corpus_is_always_the_same():
    assert tokenizer.corpus(["<s>"]) == tokenizer.corpus(["<s>"])
    assert any("<s>" in text for text in tokenizer.corpus(["<s>"]))


def test_text_that_the_artifact_was_calibrated_on_is_refused(artifact, tmp_path):
    """Its manifest keeps hashes of lines, so the text itself may be gone."""
    own = tmp_path / "mine.txt"
    lines = [f"Line {n} of a text that somebody calibrated an artifact of theirs on." for n in range(600)]
    own.write_text("\n".join(lines))
    copied = shutil.copytree(artifact, tmp_path / "copy")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["recipe"]["fitted_to"] = overlap.record([own])
    assert len(manifest["recipe"]["fitted_to"][0]["line_hashes"]) == 256
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "other.txt").write_text(data.text("heldout")[:9000] + "\n".join(lines[:50]))
    own.unlink()
    code, result = call("verify", copied, "--level", "outputs", "--text", tmp_path / "other.txt")
    assert code == 2
    assert "mine.txt" in str(result.exception)


def test_a_recipe_records_the_texts_it_fits_weights_to(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"text": "a line that is long enough to be told apart"}))
    step = SimpleNamespace(calibration=tmp_path / "mine.jsonl")
    recipe = Recipe(tmp_path, Convert(), Export(), (step,))
    (entry,) = overlap.record(pipeline._fitted(recipe))
    assert (entry["name"], len(entry["line_hashes"])) == ("mine.jsonl", 1)
    assert overlap.shared(tmp_path / "mine.jsonl", "", [entry]) == "mine.jsonl"


def test_a_student_is_judged_by_how_it_predicts(tmp_path):
    _, folder = tiny.make("llama")
    prune = Prune(layers=1)
    export = Export(output=tmp_path, to=("safetensors",), verify=False)
    run(Recipe(folder, Convert(), export, (prune,)), Report())
    code, result = call("verify", tmp_path / "safetensors", *FEW, "--json")
    found = json.loads(result.stdout)
    assert {check["kind"] for check in found["checks"]} == {"files", "tokenizer", "outputs"}
    assert found["checks"][-1]["name"] == "perplexity_ratio"
    assert code == {"pass": 0, "fail": 3, "could-not-measure": 4}[found["checks"][-1]["outcome"]]
    gate = ["--gate", "perplexity_ratio<=1.0001", "--gate", "kl_mean<=1e-9"]
    assert call("verify", tmp_path / "safetensors", *FEW, *gate, "-q")[0] == 3


def test_weights_that_cannot_be_compared_are_no_pass(artifact, tmp_path):
    """Those of a student, say, or of another tool's graphs, where nobody looks at the answers either."""
    copied = shutil.copytree(artifact, tmp_path / "copy")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["recipe"]["passes"] = [{"smooth": {}}]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    code, result = call("verify", copied, "--level", "tensors", "--json")
    assert code == 4
    assert "--level all" in json.loads(result.stdout)["checks"][-1]["detail"]
    assert call("verify", copied, *FEW, "-q")[0] == 0


def test_another_kind_of_model_is_no_source(artifact):
    code, result = call("verify", artifact, "--against", data.model_path(), "--json")
    assert code == 3
    last = json.loads(result.stdout)["checks"][-1]
    assert (last["kind"], last["name"]) == ("config", "architecture")
    assert "gpt54" in last["detail"]


@pytest.mark.parametrize("level", ["tensors", "outputs", "all"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 3}, "layers 2 (the model: 3)"),
        ({"hidden_size": 32}, "width 64 (the model: 32)"),
    ],
)
def test_a_larger_or_smaller_model_is_no_source(artifact, changes, says, level):
    code, result = call(
        "verify", artifact, "--against", tiny.make("llama", **changes)[1], "--json", "--level", level, *FEW
    )
    assert code == 3
    last = json.loads(result.stdout)["checks"][-1]
    assert (last["kind"], last["name"]) == ("config", "sizes")
    assert says in last["detail"]


def test_more_rows_of_an_embedding_are_no_traceback(tmp_path):
    """Rows are padded by some tools, so this alone does not say that the model is another one."""
    step = Quantize(scheme="q8_0")
    run(Recipe(tiny.make("llama")[1], step, Export(tmp_path, to=("gguf",), verify=False)), Report())
    module = stages.Lineup(
        load(tiny.make("llama", extra_vocab=8)[1]), load(tmp_path / "gguf"), {}, VerifyOptions(threads=1)
    )
    batch = stack([Document(np.arange(9), np.arange(9))], 0)
    assert np.isfinite(module.converted().logits(batch)).all()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--gate", "kl_men<=1"), 2, "did you mean kl_mean_nats?"),
        (("--gate", "nonsense"), 2, "is no gate"),
        (("--gate", "kl_mean<=1.1*baseline"), 2, "--baseline"),
        (("--gate", "kl_mean<=1", "--level", "tensors"), 2, "--level tensors"),
        (("--gate", "top1>=90"), 2, "write 90% or 0.9"),
        (("--threads", "9999"), 2, "--threads must be 1 to 256"),
        (("--tokens", "0"), 2, "--tokens"),
        (("--context", "3"), 2, "--context 3"),
        (("--text", "missing.txt"), 1, "missing.txt"),
        (("--text", "empty.txt"), 1, "holds no text"),
        (("--text", "bytes.txt"), 1, "not UTF-8"),
        (("--baseline", "missing.json"), 1, "missing.json"),
        (("--baseline", "empty.txt"), 1, "not JSON"),
        (("--against", "nowhere"), 1, "does not exist"),
    ],
)
def test_mistakes_get_one_sentence_before_any_work(artifact, words, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpt54_convert.verify.outputs.measure", None)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    found, result = call("verify", artifact, *words)
    assert found == code
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_report_that_cannot_be_written_does_not_cost_the_verdict(artifact, tmp_path):
    (tmp_path / "file").write_text("")
    code, result = call(
        "verify", artifact, "--level", "tensors", "--json", "--html", tmp_path / "file" / "x.html"
    )
    assert code == 1 and "cannot write" in str(result.exception)
    assert json.loads(result.stdout)["verdict"] == "pass"
