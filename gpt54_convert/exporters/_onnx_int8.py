"""Products of 8-bit activations with 8-bit weights, in standard operators.

What enters a matrix is rounded as it comes, token by token, multiplied in integers (`MatMulInteger`) and
scaled back; or rounded by a scale that was measured before, and written as a product of dequantized numbers
(`QuantizeLinear`, `DequantizeLinear`), which ONNX Runtime joins by itself.  `DynamicQuantizeLinear`, with one
scale for all tokens, would be some 10 % faster, and useless where one token's values are a thousand times the
others', as in many decoders.
Codes are unsigned with 128 in the middle: with signed ones, processors without VNNI instructions saturate
(onnxruntime, "Quantize ONNX Models").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

_FLOAT = int(ir.DataType.FLOAT)
_MIDDLE = "middle.uint8.128"


def multiply(graph: ir.Graph, node: ir.Node, codes: ir.Value, scales: ir.Value, name: str) -> None:
    """Replace `node`, a MatMul or Gemm with the matrix as its second input, by a product of integers.

    codes uint8 [out, in]; scales float32 [out, any], of which every column says the same.
    name: of the matrix, for what is made of it.
    """
    builder = _Builder(graph, node)
    matrix = builder.once(f"{name}.turned", "Transpose", [codes], {"perm": [1, 0]})
    first = builder.constant("first", np.array(0, np.int64))
    scale = builder.once(f"{name}.scale", "Gather", [scales, first], {"axis": 1})
    rounded, step = builder.rounded(node.inputs[0])
    middle = builder.constant(_MIDDLE, np.array(128, np.uint8))
    product = builder.add("MatMulInteger", [rounded, matrix, middle, middle])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    sums = builder.add("Mul", [builder.add("Cast", [product], {"to": _FLOAT}), scale])
    if bias is None:
        builder.finish("Mul", [sums, step])
    else:
        builder.finish("Add", [builder.add("Mul", [sums, step]), bias])


def multiply_fixed(
    graph: ir.Graph,
    node: ir.Node,
    codes: ir.Value,
    scales: ir.Value,
    name: str,
    ranges: Mapping[str, tuple[float, float]],
) -> None:
    """`multiply` where what enters is rounded by the range of `ranges`.

    Matrices that one value enters share its rounding, by the first one's range.
    """
    builder = _Builder(graph, node)
    matrix = builder.once(f"{name}.turned", "Transpose", [codes], {"perm": [1, 0]})
    first = builder.constant("first", np.array(0, np.int64))
    scale = builder.once(f"{name}.scale", "Gather", [scales, first], {"axis": 1})
    rows = scales.shape[0] if scales.shape is not None else 0
    middles = builder.constant(f"{_MIDDLE}.{rows}", np.full(int(rows), 128, np.uint8))  # type: ignore[call-overload]
    weights = builder.add("DequantizeLinear", [matrix, scale, middles], {"axis": 1})
    product = [builder.fixed(node.inputs[0], name, *ranges[name]), weights]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        builder.finish("MatMul", product)
    else:
        builder.finish("Add", [builder.add("MatMul", product), bias])


def grid_of(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of 8-bit codes for [low, high], of which 0 is always one."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    return scale, np.uint8(np.clip(np.rint(-low / float(scale)), 0, 255))


class _Builder:
    """Puts operators in front of a node and, last, in its place."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self._node = graph, node

    def add(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | list[int]] | None = None,
        outputs: int = 1,
    ) -> ir.Value:
        new = ir.node(kind, list(inputs), dict(attributes or {}), num_outputs=outputs)
        self._graph.insert_before(self._node, new)
        return new.outputs[0]

    def once(
        self, name: str, kind: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int | list[int]]
    ) -> ir.Value:
        """What is made of stored weights alone, at the head of the graph: computed while loading."""
        for use in inputs[0].uses():
            if use.node.outputs[0].name == name:
                return use.node.outputs[0]
        new = ir.node(kind, list(inputs), dict(attributes))
        self._graph.insert_before(self._graph[0], new)
        new.outputs[0].name = name
        return new.outputs[0]

    def rounded(self, value: ir.Value | None) -> tuple[ir.Value, ir.Value]:
        """The codes of `value` [.., in] and their scales [.., 1], shared by all matrices that it enters."""
        assert value is not None
        one = self.constant("one", np.array(1, np.float32))
        for divided in (use.node for use in value.uses() if use.node.op_type == "Div"):
            for use in divided.outputs[0].uses():
                if use.node.op_type == "QuantizeLinear" and use.node.inputs[1] is one:
                    return use.node.outputs[0], divided.inputs[1]  # type: ignore[return-value]
        last = self.constant("last", np.array([-1], np.int64))
        largest = self.add("ReduceMax", [self.add("Abs", [value]), last], {"keepdims": 1})
        step = self.add("Mul", [largest, self.constant("one.127th", np.array(1 / 127, np.float32))])
        step = self.add("Max", [step, self.constant("tiny", np.array(1e-30, np.float32))])
        middle = self.constant(_MIDDLE, np.array(128, np.uint8))
        return self.add("QuantizeLinear", [self.add("Div", [value, step]), one, middle]), step

    def fixed(self, value: ir.Value | None, name: str, low: float, high: float) -> ir.Value:
        """`value` rounded to the codes of [low, high], shared by all matrices that it enters."""
        assert value is not None
        users = [use.node for use in value.uses() if use.node.op_type == "QuantizeLinear"]
        if users:
            codes = users[0].outputs[0]
            return next(use.node.outputs[0] for use in codes.uses())
        scale, zero = grid_of(low, high)
        step = self.constant(f"{name}.input_scale", np.array(scale, np.float32))
        middle = self.constant(f"{name}.input_zero_point", np.array(zero, np.uint8))
        codes = self.add("QuantizeLinear", [value, step, middle])
        return self.add("DequantizeLinear", [codes, step, middle])

    def constant(self, name: str, content: np.ndarray) -> ir.Value:
        if name not in self._graph.initializers:
            tensor = ir.tensor(content, name=name)
            kind = ir.TensorType(tensor.dtype)
            value = ir.Value(name=name, shape=ir.Shape(content.shape), type=kind, const_value=tensor)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def finish(self, kind: str, inputs: Sequence[ir.Value | None]) -> None:
        """The last operator, which takes the node's place and name."""
        old = self._node.outputs[0]
        made = self.add(kind, inputs)
        made.shape, made.type, name = old.shape, old.type, old.name
        old.name = f"{name}.replaced"
        made.name = name
        old.replace_all_uses_with(made, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)
