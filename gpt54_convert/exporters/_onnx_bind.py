"""An initialiser of a traced graph bound to its stored bytes, and its users made to read them.

Floats: the stored matrix is [out, in] and has the type it is stored in; what the graph wants otherwise is a
`Transpose` (or a flag of `Gemm`) and a `Cast`, which runtimes compute once while loading.
Codes: `MatMul` and `Gemm` become `MatMulNBits`, `Gather` becomes `GatherBlockQuantized`
(onnxruntime, docs/ContribOperators.md).  A head tied to the embedding is read by both from the same bytes of
the file, under two names, since they want other shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import UnsupportedError
from gpt54_convert.exporters import _onnx_int8
from gpt54_convert.exporters._hf_folder import stored_grid
from gpt54_convert.exporters._onnx_store import CODES, SCALES, VALUES, ZERO_POINTS, Part
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.packing.onnx import block_size

DOMAIN = "com.microsoft"
# Activations are rounded to int8 in blocks: the only level that is fast for all widths of codes.
ACCURACY_LEVEL = 4
_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "uint8": ir.DataType.UINT8}


def bind(
    graph: ir.Graph,
    value: ir.Value,
    view: LazyTensor,
    parts: Mapping[str, Part],
    turned: bool,
    options: SinkOptions,
) -> None:
    """Replace the initialiser `value` by what is stored of `view`.

    turned: the graph holds the matrix as [in, out] (transformers' Conv1D).
    options: which matrices' inputs are rounded to 8 bits too, and how.
    Raises UnsupportedError where codes are used by an operator that has no form for them.
    """
    if VALUES in parts:
        _bind_floats(graph, value, view.name, parts[VALUES], turned)
    else:
        _bind_codes(graph, value, view, parts, turned, options)
    graph.initializers.pop(value.name or "", None)


def _bind_floats(graph: ir.Graph, value: ir.Value, name: str, part: Part, turned: bool) -> None:
    wanted = value.dtype
    graph.initializers.pop(value.name or "")
    stored = _stored(graph, name, part, part.shape)
    if stored.dtype != wanted and wanted is not None:
        stored = _computed(graph, "Cast", stored, {"to": wanted}, f"{name}.cast", wanted)
    if turned:
        for node, index in list(value.uses()):
            if node.op_type == "Gemm" and index == 1:
                node.attributes["transB"] = ir.AttrInt64("transB", 1 - _flag(node, "transB"))
                node.replace_input_with(index, stored)
        if value.uses():
            stored = _computed(graph, "Transpose", stored, {"perm": [1, 0]}, f"{name}.turned", stored.dtype)
    value.replace_all_uses_with(stored)


def _bind_codes(
    graph: ir.Graph,
    value: ir.Value,
    view: LazyTensor,
    parts: Mapping[str, Part],
    turned: bool,
    options: SinkOptions,
) -> None:
    graph.opset_imports.setdefault(DOMAIN, 1)
    for node, index in list(value.uses()):
        if node.op_type == "Gather" and index == 0 and _flag(node, "axis") == 0 and not turned:
            _gather(graph, node, view, parts)
        elif node.op_type == "Transpose" and not turned:
            for user, place in list(node.outputs[0].uses()):
                _multiply(graph, user, place, view, parts, True, options)
            graph.remove(node, safe=True)
        else:
            _multiply(graph, node, index, view, parts, turned, options)


def _multiply(
    graph: ir.Graph,
    node: ir.Node,
    index: int,
    view: LazyTensor,
    parts: Mapping[str, Part],
    stands: bool,
    options: SinkOptions,
) -> None:
    """A product with the matrix; `stands`: `node` reads it as [in, out]."""
    plain = node.op_type == "MatMul" and stands
    gemm = node.op_type == "Gemm" and _flag(node, "transB") == (not stands) and not _flag(node, "transA")
    if index != 1 or not (plain or gemm):
        raise _unfit(node, view)
    if view.grid == options.activations and (options.ranges is None or view.name in options.ranges):
        codes = _stored(graph, f"{view.name}.rows", parts[CODES], parts[CODES].shape)
        scales = _stored(graph, f"{view.name}.{SCALES}", parts[SCALES], parts[SCALES].shape)
        if options.ranges is None:
            _onnx_int8.multiply(graph, node, codes, scales, view.name)
        else:
            _onnx_int8.multiply_fixed(graph, node, codes, scales, view.name, options.ranges)
        return
    target = stored_grid(view.grid or "")
    block = block_size(target, view.columns)
    rows, width = view.shape[0], parts[CODES].shape[1]
    blocks = view.columns // block
    inputs = [
        node.inputs[0],
        _stored(graph, f"{view.name}.{CODES}", parts[CODES], (rows, blocks, width // blocks)),
        *_scales(graph, view, parts),
    ]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        inputs += [None] * (5 - len(inputs)) + [bias]  # the fifth input, g_idx, is not ours
    sizes = {"K": view.columns, "N": rows, "bits": target.bits, "block_size": block}
    _swap(graph, node, "MatMulNBits", inputs, {**sizes, "accuracy_level": ACCURACY_LEVEL})


def _gather(graph: ir.Graph, node: ir.Node, view: LazyTensor, parts: Mapping[str, Part]) -> None:
    target = stored_grid(view.grid or "")
    codes = _stored(graph, f"{view.name}.rows", parts[CODES], parts[CODES].shape)
    sizes = {"block_size": block_size(target, view.columns), "bits": target.bits}
    inputs = [codes, node.inputs[1], *_scales(graph, view, parts)]
    _swap(graph, node, "GatherBlockQuantized", inputs, {**sizes, "gather_axis": 0, "quantize_axis": 1})


def _scales(graph: ir.Graph, view: LazyTensor, parts: Mapping[str, Part]) -> Iterable[ir.Value]:
    for kind in (SCALES, ZERO_POINTS):
        if kind in parts:
            yield _stored(graph, f"{view.name}.{kind}", parts[kind], parts[kind].shape)


def _swap(
    graph: ir.Graph,
    node: ir.Node,
    kind: str,
    inputs: Iterable[ir.Value | None],
    attributes: Mapping[str, int],
) -> None:
    """Put an operator of ONNX Runtime in the place of `node`."""
    old = node.outputs[0]
    new = ir.node(kind, list(inputs), dict(attributes), domain=DOMAIN)
    graph.insert_before(node, new)
    made, name = new.outputs[0], old.name
    made.shape, made.type = old.shape, old.type
    old.name = f"{name}.replaced"
    made.name = name
    old.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _stored(graph: ir.Graph, name: str, part: Part, shape: tuple[int, ...]) -> ir.Value:
    """The initialiser `name` that is read from `part` of a file; made once."""
    if name in graph.initializers:
        return graph.initializers[name]
    kind, dims = _TYPES[part.dtype], ir.Shape(shape)
    tensor = ir.ExternalTensor(part.file, part.offset, part.size_bytes, kind, shape=dims, name=name)
    value = ir.Value(name=name, shape=dims, type=ir.TensorType(kind), const_value=tensor)
    graph.register_initializer(value)
    return value


def _computed(
    graph: ir.Graph,
    kind: str,
    source: ir.Value,
    attributes: Mapping[str, int | list[int]],
    name: str,
    dtype: ir.DataType | None,
) -> ir.Value:
    """What `kind` makes of an initialiser, at the head of the graph."""
    node = ir.node(kind, [source], dict(attributes))
    graph.insert_before(graph[0], node)
    made = node.outputs[0]
    made.name = name
    if dtype is not None:
        made.type = ir.TensorType(dtype)
    return made


def _flag(node: ir.Node, name: str) -> int:
    """An attribute that is 0 where it is not written."""
    return node.attributes.get_int(name, 0) if name in node.attributes else 0


def _unfit(node: ir.Node, view: LazyTensor) -> UnsupportedError:
    return UnsupportedError(
        f"tensor {view.name} is on {view.grid}, but the graph uses it in {node.op_type}, which has no form "
        "for codes in ONNX Runtime; keep that role as floats (--keep ROLE=float16)"
    )
