"""`run` and `pipe`: the same job from a file and from a line; gates stop it."""

import json
import os
import subprocess
import sys

import pytest

from gpt54_convert import data


def run(*words, code=0, cwd=None):
    done = subprocess.run(
        [sys.executable, "-m", "gpt54_convert", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


def hashes(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    return {entry["name"]: entry["sha256"] for entry in manifest["outputs"] if entry["name"] != "README.md"}


def test_a_line_and_its_file_and_the_plain_command_write_the_same_bytes(tmp_path):
    words = ("quantize", "--bits", 4, "--fast", "export", "--no-verify", "--to", "gguf", "-o")
    run("pipe", "-q", *words, tmp_path / "line")
    run("pipe", "--save", tmp_path / "r.toml", *words, tmp_path / "file")
    run("run", tmp_path / "r.toml", "-q")
    run("quantize", "--bits", 4, "--fast", "--to", "gguf", "--no-verify", "-o", tmp_path / "plain", "-q")
    assert hashes(tmp_path / "line/gguf") == hashes(tmp_path / "file/gguf") == hashes(tmp_path / "plain/gguf")


def test_a_gate_that_fails_stops_the_job_with_3_and_leaves_nothing(tmp_path):
    pytest.importorskip("torch")
    words = (
        "gate",
        "--demand",
        "perplexity_ratio<=0.5",
        "--tokens",
        2048,
        "export",
        "--to",
        "gguf",
        "-o",
        tmp_path / "out",
    )
    done = run("pipe", *words, code=3)
    assert "gate failed: perplexity_ratio" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_gate_that_passes_says_so(tmp_path):
    pytest.importorskip("torch")
    words = ("gate", "--demand", "kl_mean<=1e-9", "--tokens", 2048, "export", "--to", "gguf", "--no-verify")
    done = run("pipe", *words, "-o", tmp_path / "out")
    assert "gate passed: kl_mean_nats" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gguf"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quantize", "load", "x"), "load comes first"),
        (("quantize", "convert"), "a second convert"),
        (("quantize", "gate", "--demand", "kl_mean<=1"), "gate comes after the weights were stored"),
        (("export", "export"), "a second export"),
        (("load", "/nowhere/at/all", "quantize"), "/nowhere/at/all"),
        (("prnue",), "prnue"),
    ],
)
def test_lines_that_make_no_sense(words, said):
    done = subprocess.run(
        [sys.executable, "-m", "gpt54_convert", "pipe", *words], check=False, capture_output=True, text=True
    )
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr


def test_a_recipe_can_be_planned(tmp_path):
    (tmp_path / "r.toml").write_text(
        f'source = "{data.model_path()}"\n[quantize]\nbits = 4\n[export]\nto = ["gguf"]\n'
    )
    found = json.loads(run("run", tmp_path / "r.toml", "--dry-run", "--json", cwd=tmp_path).stdout)
    assert found["schema"] == "gpt54-convert/plan/1" and found["artifacts"]
    assert [path.name for path in tmp_path.iterdir()] == ["r.toml"]


@pytest.mark.slow
def test_a_line_can_end_in_a_verdict(tmp_path):
    """Of the safetensors folder, in transformers; a gate that no 4-bit model keeps exits with 3."""
    pytest.importorskip("compressed_tensors")
    words = ("quantize", "--bits", 4, "--fast", "export", "--no-verify", "--to", "safetensors", "-o")
    some = ("verify", "--level", "outputs", "--tokens", 2048, "--gate")
    done = run("pipe", *words, tmp_path / "a", *some, "kl_mean<=0.5")
    assert "verified: pass" in done.stdout
    done = run("pipe", "--json", *words, tmp_path / "b", *some, "kl_mean<=1e-5", code=3)
    assert json.loads(done.stdout)["artifacts"][0]["verification"]["verdict"] == "fail"


def test_a_plan_estimates_time_by_the_work_of_its_passes(tmp_path):
    def seconds(*passes):
        done = run("pipe", "--dry-run", "--json", *passes, "export", "--to", "gguf", "-o", tmp_path / "o")
        return json.loads(done.stdout)["estimated_s"]

    plain = seconds()
    short = seconds("distill-train", "--tokens", 1_000_000)
    long = seconds("distill-train", "--tokens", 10_000_000)
    assert 0 < plain < short < long
    # Teacher and student of 7.3 M: 8 operations a weight and token, 3e10 a second and core.
    cores = len(os.sched_getaffinity(0))
    assert long - short == pytest.approx(9e6 * 8 * 7_346_176 / 3e10 / cores, rel=0.01)
