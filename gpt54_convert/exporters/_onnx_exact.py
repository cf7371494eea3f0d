"""A graph computed without rounding what enters its products: what tells rounding from mistakes."""

from __future__ import annotations

import onnx
from onnx import helper

_FLOAT = onnx.TensorProto.FLOAT


def exact(graph: bytes) -> bytes:
    """The graph with every product of codes computed in full precision."""
    model = onnx.ModelProto.FromString(graph)
    _make_exact(model.graph)
    content: bytes = model.SerializeToString()
    return content


def _make_exact(graph: onnx.GraphProto) -> None:
    _unrounded(graph)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
            elif attribute.HasField("g"):  # a branch
                _make_exact(attribute.g)


def _unrounded(graph: onnx.GraphProto) -> None:
    """Products of integers (`_onnx_int8`) without rounding what enters them, in place."""
    nodes: list[onnx.NodeProto] = []
    codes_of_inputs = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] in codes_of_inputs
        ):
            nodes.append(helper.make_node("Identity", [node.input[0]], [node.output[0]]))
        elif node.op_type == "DequantizeLinear":  # as it is, ONNX Runtime would make it MatMulNBits
            (weights,) = node.output
            nodes += _less_middle(node.input[0], node.input[2], f"{weights}/matrix")
            nodes.append(helper.make_node("Mul", [f"{weights}/matrix", node.input[1]], [weights]))
        elif node.op_type == "MatMulInteger":
            (product,) = node.output
            nodes += _less_middle(node.input[1], node.input[3], f"{product}/matrix")
            nodes.append(helper.make_node("MatMul", [node.input[0], f"{product}/matrix"], [product]))
        else:
            nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _less_middle(codes: str, middle: str, name: str) -> list[onnx.NodeProto]:
    """Nodes that make whole numbers around 0 of codes."""
    return [
        helper.make_node("Cast", [codes], [f"{name}/values"], to=_FLOAT),
        helper.make_node("Cast", [middle], [f"{name}/middle"], to=_FLOAT),
        helper.make_node("Sub", [f"{name}/values", f"{name}/middle"], [name]),
    ]
