"""Pruned models of every architecture in ONNX Runtime, padded, with past and without."""

import sys
from pathlib import Path

import pytest
import tiny
from surgery import SMALLER, opened, smaller

from gpt54_convert import pipeline
from gpt54_convert.core.report import Report
from gpt54_convert.prune.step import Prune
from gpt54_convert.recipe import Convert, Export, Recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "exporters"))
from test_onnx_float import compare

FAST = ("llama", "gpt54")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in SMALLER]
)
def test_onnx_runtime_computes_the_same(kind, tmp_path):
    _, folder = tiny.make(kind)
    export = Export(output=tmp_path, to=("safetensors", "onnx"))
    pipeline.run(Recipe(folder, Convert(), export, (Prune(**smaller(kind)),)), Report())
    assert compare(opened(tmp_path / "safetensors"), tmp_path / "onnx") < 1e-4
