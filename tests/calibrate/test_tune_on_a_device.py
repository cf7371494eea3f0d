"""Tuning on another device than the processor: the same scales; and where its memory is too small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from test_tune import Heard, setup

from gpt54_convert.calibrate import tune

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("kind", "target", "kept"),
    [
        ("llama", "int4-g32", 0),  # embedding and head are read by rows
        pytest.param("gpt2", "int3-g16-asym", 1 << 30, marks=pytest.mark.slow),
        pytest.param("gpt54", "int4-channel", 0, marks=pytest.mark.slow),
        pytest.param("bert", "int3-g16", 0, marks=pytest.mark.slow),
    ],
)
def test_the_scales_are_those_of_the_processor(kind, target, kept, tmp_path):
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    words = [
        sys.executable,
        str(TESTS / "calibrate/tune_elsewhere.py"),
        kind,
        target,
        str(tmp_path),
        str(kept),
    ]
    ran = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["products"] > 20, "nothing ran there"
    assert found["moved"] < 1e-2
    here, there = found["said"]
    assert "are taken" in here[0] and here[0].split()[:7] == there[0].split()[:7]


def test_a_device_without_memory_leaves_it_to_the_processor(tmp_path, monkeypatch):
    checkpoint, batches, solution, store = setup(tiny.make("llama")[1], tmp_path, "int4-g32")
    trained, used = tune._trained, []

    def full(*args):
        used.append(args[-1].type)
        if args[-1].type != "cpu":
            raise torch.OutOfMemoryError("out of memory")
        return trained(*args)

    monkeypatch.setattr(tune, "fastest", lambda: torch.device("meta"))
    monkeypatch.setattr(tune, "_trained", full)
    tune.tune(solution, store, checkpoint, batches, heard := Heard())
    assert used == ["meta", "cpu"]
    assert "memory of meta is too small" in heard.notes[0]
    assert "are taken" in heard.details[0]


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    for there, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert tune.fastest().type == kind
