"""Graphs tidied without onnxscript's slow rule: the same graphs as with all of them."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest
import tiny
from onnxscript import optimizer, rewriter

from gpt54_convert.exporters import _onnx_tidy, _onnx_trace
from gpt54_convert.loaders import load


@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(k, marks=pytest.mark.slow) for k in ("gpt2", "gpt54"))]
)
def test_the_graph_is_that_of_all_rules(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[tuple[Counter[object], ...]] = []

    def noted(model: ir.Model) -> None:
        copy = model.clone()
        optimizer.optimize_ir(copy)
        _onnx_tidy.tidy(model)
        pairs.append((shape(copy), shape(model)))

    monkeypatch.setattr(_onnx_trace, "tidy", noted)
    _onnx_trace._trace(load(tiny.make(kind)[1]), "float32")
    assert len(pairs) == (3 if kind == "gpt54" else 1)
    for full, ours in pairs:
        assert full == ours and sum(ours.values()) > 50


def shape(model: ir.Model) -> Counter[object]:
    """Every operator, with the shapes that it answers."""
    return Counter((node.op_type, tuple(str(value.shape) for value in node.outputs)) for node in model.graph)


def test_without_the_rules_all_is_done_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their name is onnxscript's own affair: where it is gone, tidying is slower."""
    assert len(_onnx_tidy._rules()) == len(rewriter._DEFAULT_REWRITE_RULES) - 1
    monkeypatch.delattr(rewriter, "_DEFAULT_REWRITE_RULES")
    done: list[ir.Model] = []
    monkeypatch.setattr(optimizer, "optimize_ir", done.append)
    model = ir.Model(ir.Graph([], [], nodes=[], name="empty"), ir_version=10)
    _onnx_tidy.tidy(model)
    assert done == [model]
