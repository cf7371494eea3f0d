"""The mask of a decoder, causal and without padding, computed by few operators.

transformers computes it by some thirty, of which each costs a decoded token as much as a norm.  A mask is
known by what it answers: the operators behind it are run on padded samples as long as the longest text the
model was made for, and where they answer otherwise (sliding windows, relative positions), they stay.

Source: ONNX operators: Trilu.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.exporters._genai_config import longest_text
from gpt54_convert.exporters._onnx_fuse import sweep
from gpt54_convert.exporters._onnx_trace import Traced

NAME = "mask.causal"
_LONGEST = 1 << 18  # no window is wider
_IDS, _MASK, _PAST = "input_ids", "attention_mask", "past_key_values.0.key"


def rewrite(traced: Traced, checkpoint: Checkpoint) -> None:
    """`shorten` as one of `_onnx_graph.REWRITES`."""
    shorten(traced.model, min(longest_text(checkpoint.config), _LONGEST))


def shorten(model: ir.Model, longest: int) -> int:
    """Replace such masks of attentions, in place; how many there were.  longest: of texts, in tokens."""
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs}
    if not {_IDS, _MASK, _PAST} <= set(inputs):
        return 0
    masks = {
        id(node.inputs[3]): node.inputs[3]
        for node in graph
        if node.op_type == "Attention" and len(node.inputs) > 3
    }
    found = [
        (mask, low) for mask in masks.values() if mask and (low := _low(model, mask, longest)) is not None
    ]
    if found:
        short = _short(graph, inputs, found[0][1])
        for mask, _ in found:
            mask.replace_all_uses_with(short)
        sweep(graph)
        graph.sort()
    return len(found)


def _low(model: ir.Model, mask: ir.Value, longest: int) -> NDArray[Any] | None:
    """What a causal mask without padding adds to scores that do not count; None for any other mask."""
    session = _alone(model, str(mask.name))
    if session is None:
        return None
    names, low = [entry.name for entry in session.get_inputs()], None
    for rows, steps, past in ((2, 3, longest), (3, 1, 4), (3, 5, 0)):
        known = np.random.default_rng(past).integers(0, 2, (rows, past + steps))
        known[0] = 1
        feed = {_IDS: np.ones((rows, steps), np.int64), _MASK: known}
        past_feed = np.zeros((rows, 1, past, 1), mask.dtype.numpy() if mask.dtype else np.float32)
        answer = session.run(None, {name: feed.get(name, past_feed) for name in names})[0]
        wanted = np.tri(steps, past + steps, past, dtype=bool) & (known[:, None, None] != 0)
        if answer.shape != wanted.shape or not np.array_equal(answer == 0, wanted):
            return None
        others = np.unique(answer[~wanted])
        low = others[0] if low is None else low
        if not np.array_equal(others, [low]):
            return None
    return low


def _alone(model: ir.Model, output: str) -> onnxruntime.InferenceSession | None:
    """The operators behind a value; None where they read what no mask reads."""
    copy = model.clone()
    graph = copy.graph
    graph.outputs[:] = [value for node in graph for value in node.outputs if value.name == output]
    sweep(graph)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
        elif str(value.name).startswith("past_key_values."):  # of which only the shape is read
            value.shape = ir.Shape(["rows", "heads", "past", "size"])
        elif value.name not in (_IDS, _MASK):
            return None
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]  # weights
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(ir.to_proto(copy).SerializeToString(), options)


def _short(graph: ir.Graph, inputs: Mapping[str, ir.Value], low: NDArray[Any]) -> ir.Value:
    """The mask [batch, 1, time, total]: `low` where a key is padding or later than the query, else 0."""

    def constant(name: str, content: NDArray[Any]) -> ir.Value:
        tensor = ir.tensor(content, name=f"{NAME}.{name}")
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=tensor.name, shape=ir.Shape(content.shape), type=kind, const_value=tensor)
        graph.register_initializer(value)
        return value

    def op(kind: str, values: Iterable[ir.Value], **attributes: int) -> ir.Value:
        node = ir.node(kind, list(values), attributes)
        graph.append(node)
        return node.outputs[0]

    known = op("Cast", [inputs[_MASK]], to=int(ir.DataType.BOOL))
    known = op("Unsqueeze", [known, constant("axes", np.array([1, 2]))])
    steps = op("Shape", [inputs[_IDS]], start=1, end=2)
    one = constant("one", np.array([1]))
    spread = op("Expand", [known, op("Concat", [steps, one], axis=0)])
    past = op("Shape", [inputs[_PAST]], start=2, end=3)
    causal = op("Trilu", [spread, past], upper=0)
    mask = op("Where", [causal, constant("zero", np.zeros_like(low)), constant("low", np.asarray(low))])
    mask.name, mask.type = NAME, ir.TensorType(ir.DataType.from_numpy(low.dtype))
    mask.shape = ir.Shape(["batch_size", 1, "sequence_length", "total"])
    return mask
