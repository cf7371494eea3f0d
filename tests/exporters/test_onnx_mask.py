"""The short mask of decoders: where it stands, that it means the same, and which masks are left alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from test_onnx_fuse import CASES, operators, run, session, traced

from gpt54_convert.exporters import _onnx_fuse, _onnx_mask


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest) -> tuple[ir.Model, ir.Model]:
    """The same joined graph with the mask of transformers and with the short one."""
    long = traced(request.param)[0].model
    _onnx_fuse.fuse(long)
    short = ir.from_proto(ir.to_proto(long))
    assert _onnx_mask.shorten(short, 64) == 1
    return long, short


@pytest.mark.parametrize("case", CASES)
def test_it_means_the_same(case: str, pair: tuple[ir.Model, ir.Model]) -> None:
    """Not a bit differs: the same numbers are added to the same scores."""
    mask, positions, cuts = CASES[case]
    known = np.array(mask)
    where = np.maximum(known.cumsum(1) - 1, 0) if positions is None else np.array(positions)
    long, short = (run(session(model), known, where, cuts) for model in pair)
    assert np.array_equal(long, short) and np.abs(long).max() > 0


def test_it_takes_fewer_operators(pair: tuple[ir.Model, ir.Model]) -> None:
    long, short = map(operators, pair)
    assert sum(short.values()) <= sum(long.values()) - 20
    assert long["GatherND"] and not short["GatherND"] and short["Trilu"] == 1


def test_windows_stay(pair: tuple[ir.Model, ir.Model]) -> None:
    """A window of 40 tokens is one where texts are longer, and none where they are not."""
    model = ir.from_proto(ir.to_proto(pair[0]))
    causal = next(node for node in model.graph if node.op_type == "LessOrEqual")
    span = ir.node("Sub", [causal.inputs[1], causal.inputs[0]])
    width = ir.Value(name="width", const_value=ir.tensor(40, dtype=ir.DataType.INT64, name="width"))
    model.graph.register_initializer(width)
    near = ir.node("Less", [span.outputs[0], width])
    both = ir.node("And", [near.outputs[0], causal.outputs[0]])
    causal.outputs[0].replace_all_uses_with(both.outputs[0])
    both.replace_input_with(1, causal.outputs[0])
    model.graph.insert_after(causal, [span, near, both])
    content = ir.to_proto(model)
    assert _onnx_mask.shorten(ir.from_proto(content), 64) == 0
    assert _onnx_mask.shorten(ir.from_proto(content), 30) == 1


@pytest.mark.slow
def test_of_alternating_masks_one_is_shortened() -> None:
    model = traced("gemma3")[0].model
    _onnx_fuse.fuse(model)
    masks = {node.inputs[3].name for node in model.graph if node.op_type == "Attention"}
    assert len(masks) == 2 and _onnx_mask.shorten(model, 1024) == 1
    left = {node.inputs[3].name for node in model.graph if node.op_type == "Attention"}
    assert len(left) == 2 and len(left & masks) == 1
