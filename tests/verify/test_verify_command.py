"""`gpt54-convert verify` as users run it: exit codes, reports, refusals."""

import json
import shutil
import sys
from xml.etree import ElementTree

import pytest
import tiny
from click.testing import CliRunner

from gpt54_convert import cli, data
from gpt54_convert.core.report import Report
from gpt54_convert.pipeline import run
from gpt54_convert.recipe import Convert, Export, Recipe
from gpt54_convert.verify import runners, tokenizer

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


def test_a_changed_file_exits_3(artifact, tmp_path):
    copied = shutil.copytree(artifact, tmp_path / "copy")
    (copied / "config.json").write_text((copied / "config.json").read_text() + " ")
    code, result = call("verify", copied, "--json")
    assert code == 3
    assert "config.json has " in json.loads(result.stdout)["checks"][0]["detail"]


def test_every_container_has_one_runner():
    found = [c for name in runners.discover.names(runners.__name__) for c in runners.containers(name)]
    assert len(found) == len(set(found))
    assert {"gguf", "safetensors"} <= set(found)


def test_counter_examples_shrink():
    assert tokenizer.shrink("some words, then a ß and more", lambda text: "ß" in text) == "ß"


def test_the_corpus_is_always_the_same():
    assert tokenizer.corpus(["<s>"]) == tokenizer.corpus(["<s>"])
    assert any("<s>" in text for text in tokenizer.corpus(["<s>"]))
