"""The CI examples as far as they can be run here: YAML read, its run-steps executed, exit codes, reports."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tiny
import yaml

CI = Path(__file__).parents[2] / "examples" / "ci"
WORKFLOW = yaml.safe_load((CI / "github-actions.yml").read_text(encoding="utf-8"))
JOB = WORKFLOW["jobs"]["verify"]
EASY = "kl_mean<=1 top1>=0.2"


@pytest.fixture
def shop(tmp_path):
    """A folder as a user's repository, with commands that stand in for installed ones."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "gpt54-convert").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gpt54_convert "$@"\n')
    (commands / "pip").write_text('#!/bin/sh\necho "$@" >> pip-was-asked\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    shutil.copy(CI / "verify.sh", tmp_path)
    shutil.copytree(tiny.make("llama")[1], tmp_path / "model")
    return tmp_path


def bash(shop, script, **env):
    path = f"{shop / 'bin'}:{os.environ['PATH']}"
    root = str(Path(__file__).parents[2])
    own = {"PATH": path, "PYTHONPATH": root, "MODEL": "model", "TO": "safetensors", "TOKENS": "640", **env}
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=shop,
        env={**os.environ, **own},
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_workflow_is_pinned_and_bounded():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert JOB["timeout-minutes"] <= 120
    for step in JOB["steps"]:
        assert "run" in step or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]), step
    pinned = next(s["with"]["key"] for s in JOB["steps"] if s.get("uses", "").startswith("actions/cache"))
    project = (CI.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert f"llama-cpp-python=={pinned.rpartition('-')[2]}" in project


def test_its_run_steps_run(shop):
    env = {key: str(value) for key, value in JOB["env"].items()}
    env |= {
        "MODEL": "model",
        "TO": "safetensors",
        "GATES": EASY,
        "GITHUB_STEP_SUMMARY": str(shop / "summary.md"),
    }
    for step in JOB["steps"]:
        if "run" in step:
            done = bash(shop, step["run"], **env)
            assert done.returncode == 0, done.stderr
    assert "gpt54-convert[verify,llama-cpp]" in (shop / "pip-was-asked").read_text()
    assert "✅ pass" in (shop / "summary.md").read_text()
    kept = next(s["with"]["path"].split() for s in JOB["steps"] if "upload" in s.get("uses", ""))
    assert all((shop / folder).is_dir() for folder in kept)
    found = json.loads((shop / "reports" / "safetensors.json").read_text())
    assert found["verdict"] == "pass"
    suite = ElementTree.parse(shop / "reports" / "safetensors.xml").getroot()
    assert suite.get("failures") == "0"
    assert (shop / "reports" / "safetensors.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_a_gate_that_fails_fails_the_job(shop):
    done = bash(shop, "./verify.sh", GATES="kl_mean<=1e-9")
    assert done.returncode == 3, done.stderr
    assert "fail" in (shop / "reports" / "safetensors.md").read_text()


@pytest.mark.slow
def test_what_cannot_be_measured_fails_the_job(shop):
    done = bash(shop, "./verify.sh", GATES=EASY, TOKENS="20")
    assert done.returncode == 4, done.stderr
