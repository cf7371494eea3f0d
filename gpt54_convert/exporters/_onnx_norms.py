"""Root-mean-square norms as one operator each, with the addition before them where there is one.

They are found by onnxscript's rules, which also join norms whose input and scale are of different types:
Gemma 3 scales in float32 what may be float16, and T5 keeps some sums in float32.  ONNX Runtime has kernels
for one type alone, so such a norm is computed in float32 and answers in the type it had.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter.ort_fusions import rms_normalization, skip_normalization

_NORM = "SimplifiedLayerNormalization"
_WIDE = ir.DataType.FLOAT


def fuse(model: ir.Model) -> None:
    """Join them in place."""
    rms_normalization.fuse_rms_normalization(model)
    for node in list(model.graph):
        if node.op_type == _NORM and len({value.dtype for value in node.inputs if value is not None}) > 1:
            _widen(model.graph, node)
    skip_normalization.fuse_skip_rms_normalization(model)


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    """Compute a norm in float32."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype != _WIDE:
            wide = _cast(value, _WIDE)
            graph.insert_before(node, wide)
            node.replace_input_with(index, wide.outputs[0])
    answer, dtype = node.outputs[0], node.outputs[0].dtype
    if dtype is not None and dtype != _WIDE:
        narrow = _cast(answer, dtype)
        graph.insert_after(node, narrow)
        answer.replace_all_uses_with(narrow.outputs[0], replace_graph_outputs=True)
        narrow.replace_input_with(0, answer)
        answer.type, narrow.outputs[0].name, answer.name = ir.TensorType(_WIDE), answer.name, None


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype})
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    return node
