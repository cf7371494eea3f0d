"""Joined operators: where they appear, that they mean the same, and what is left alone.

That joined graphs equal torch in every situation is shown by test_onnx_float; here two graphs of ours are
compared, and each of the situations in which a fused attention went wrong elsewhere is told apart.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import tiny

from gpt54_convert.exporters import _onnx_fuse, _onnx_trace
from gpt54_convert.loaders import load

LEFT, FULL = [0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9
Arrays = dict[str, np.ndarray]


def traced(kind: str) -> list[_onnx_trace.Traced]:
    """The graphs of a tiny model, with its weights inside."""
    checkpoint = load(tiny.make(kind)[1])
    graphs = _onnx_trace.trace(checkpoint, "float32")
    for each in graphs:
        for name, source in each.sources.items():
            tensor, value = checkpoint.tensors[source], each.model.graph.initializers[name]
            data = tensor.float_rows(0, tensor.row_count).reshape(tensor.shape)
            conv1d = kind == "gpt2" and data.ndim == 2 and ".h." in source
            value.const_value = ir.Tensor(np.ascontiguousarray(data.T if conv1d else data), name=name)
    return graphs


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(
    graph: onnxruntime.InferenceSession, mask: np.ndarray, positions: np.ndarray, cuts: tuple[int, ...]
) -> np.ndarray:
    """Logits of a batch in pieces that end at `cuts`; zeros where there is padding."""
    rows, width = mask.shape
    tokens = np.random.default_rng(0).integers(3, 200, (rows, width))
    names = [entry.name for entry in graph.get_outputs()]
    past: Arrays = {
        entry.name: np.zeros((rows, entry.shape[1], 0, entry.shape[3]), np.float32)
        for entry in graph.get_inputs()
        if entry.name.startswith("past")
    }
    parts, start = [], 0
    for stop in (*cuts, width):
        feed = {
            "input_ids": tokens[:, start:stop],
            "attention_mask": mask[:, :stop],
            "position_ids": positions[:, start:stop],
        }
        found = dict(zip(names, graph.run(names, {**feed, **past}), strict=True))
        past = {k.replace("present", "past_key_values"): v for k, v in found.items() if k != "logits"}
        parts.append(found["logits"] * mask[:, start:stop, None])
        start = stop
    return np.concatenate(parts, axis=1)


@pytest.fixture(scope="module", params=["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest) -> tuple[ir.Model, ...]:
    """The same graph, plain and joined."""
    plain = traced(request.param)[0].model
    joined = ir.from_proto(ir.to_proto(plain))
    assert _onnx_fuse.fuse(joined) == load(tiny.make(request.param)[1]).config["num_hidden_layers"]
    return plain, joined


def test_one_operator_for_an_attention(pair: tuple[ir.Model, ...]) -> None:
    before, after = map(operators, pair)
    assert before["Softmax"] == after["Attention"] and not after["Softmax"]
    assert after["RotaryEmbedding"] == 2 * after["Attention"]
    assert not after["Neg"] and not after["ReduceMean"]
    assert [v.name for v in pair[0].graph.inputs] == [v.name for v in pair[1].graph.inputs]
    assert [v.name for v in pair[0].graph.outputs] == [v.name for v in pair[1].graph.outputs]


CASES = {
    "one row": ([FULL], None, ()),
    "padded in front": ([FULL, LEFT], None, ()),
    "padded behind": ([FULL, FULL[:5] + [0] * 4], None, ()),
    "a token at a time": ([FULL, LEFT], None, (5, 6, 7, 8)),
    "several tokens after a past": ([FULL, LEFT], None, (4, 7)),
    "rows at different positions": ([FULL, FULL], [list(range(9)), [40 + 3 * i for i in range(9)]], (6,)),
    "a hole": ([[1, 1, 0, 1, 1, 0, 1, 1, 1], FULL], None, (7,)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_means_the_same(case: str, pair: tuple[ir.Model, ...]) -> None:
    mask, positions, cuts = CASES[case]
    known = np.array(mask)
    where = np.maximum(known.cumsum(1) - 1, 0) if positions is None else np.array(positions)
    plain, joined = (run(session(model), known, where, cuts) for model in pair)
    assert np.abs(plain - joined).max() < 1e-5 * np.abs(plain).max()
    if "positions" in case:  # the positions matter, so a graph that took one row's for all would differ
        alike = run(session(pair[0]), known, where[[0, 0]], cuts)
        assert np.abs(plain - alike).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.slow
def test_encoder_decoders_are_joined_too() -> None:
    counts = [_onnx_fuse.fuse(each.model) for each in traced("gpt54")]
    assert counts == [3, 4, 4]  # the encoder's layers; own and cross attention of the decoder's


def test_what_looks_otherwise_stays(pair: tuple[ir.Model, ...]) -> None:
    """Scores that pass through a tanh before the softmax are no plain attention."""
    model = ir.from_proto(ir.to_proto(pair[0]))
    layers = operators(model)["Softmax"]
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    capped = ir.node("Tanh", [softmax.inputs[0]])
    model.graph.insert_before(softmax, capped)
    softmax.replace_input_with(0, capped.outputs[0])
    wanted = run(session(model), np.array([FULL]), np.arange(9)[None], ())
    assert _onnx_fuse.fuse(model) == layers - 1
    assert operators(model)["Tanh"] == operators(model)["Softmax"] == 1
    found = run(session(model), np.array([FULL]), np.arange(9)[None], ())
    assert np.abs(wanted - found).max() < 1e-5 * np.abs(wanted).max()
