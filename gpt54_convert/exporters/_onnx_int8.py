"""Products of 8-bit activations with 8-bit weights, in standard operators that ONNX Runtime joins by itself.

What enters a matrix is rounded as it comes (`DynamicQuantizeLinear`, one scale for the whole of it),
multiplied in integers (`MatMulInteger`) and scaled back.  Weights are unsigned with 128 in the middle, as
our codes are: with signed ones, processors without VNNI instructions saturate (onnxruntime, "Quantize ONNX
Models").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

FLOAT = int(ir.DataType.FLOAT)
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
    rounded, step, zero = builder.rounded(node.inputs[0])
    middle = builder.constant(_MIDDLE, np.array(128, np.uint8))
    product = builder.add("MatMulInteger", [rounded, matrix, zero, middle])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    factors = [builder.add("Cast", [product], {"to": FLOAT}), builder.add("Mul", [step, scale])]
    if bias is None:
        builder.finish("Mul", factors)
    else:
        builder.finish("Add", [builder.add("Mul", factors), bias])


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

    def rounded(self, value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The codes, scale and zero point of `value`, shared by all matrices that it enters."""
        assert value is not None
        users = [use.node for use in value.uses() if use.node.op_type == "DynamicQuantizeLinear"]
        if not users:
            self.add("DynamicQuantizeLinear", [value], outputs=3)
            users = [use.node for use in value.uses() if use.node.op_type == "DynamicQuantizeLinear"]
        codes, scale, zero = users[0].outputs
        return codes, scale, zero

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


def make_exact(graph: onnx.GraphProto) -> None:
    """The same products without rounding what enters them, in place: to tell rounding from mistakes."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            codes, scale, _ = node.output
            one = numpy_helper.from_array(np.array(1, np.float32))
            nodes.append(helper.make_node("Identity", [node.input[0]], [codes]))
            nodes.append(helper.make_node("Constant", [], [scale], value=one))
        elif node.op_type == "MatMulInteger":
            (product,) = node.output
            values, middle, matrix = (f"{product}/{part}" for part in ("values", "middle", "matrix"))
            nodes.append(helper.make_node("Cast", [node.input[1]], [values], to=FLOAT))
            nodes.append(helper.make_node("Cast", [node.input[3]], [middle], to=FLOAT))
            nodes.append(helper.make_node("Sub", [values, middle], [matrix]))
            nodes.append(helper.make_node("MatMul", [node.input[0], matrix], [product]))
        else:
            nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
