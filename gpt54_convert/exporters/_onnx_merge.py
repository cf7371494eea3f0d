"""The two decoder graphs of an encoder-decoder as one, which transformers.js wants: `decoder_model_merged`.

One input more, `use_cache_branch`, chooses between the step without a past and the step with it.  Weights,
and what is computed from weights alone, stand outside the two branches and exist once.  As in optimum's
merged graphs, the step with a past answers nothing for the keys and values of the encoder's side: whoever
calls it keeps those at hand.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

SWITCH = "use_cache_branch"
# What `_onnx_bind` makes of stored weights before they are used.
_OF_WEIGHTS = ("Transpose", "Cast", "Reshape")

Shared = dict[tuple[object, ...], ir.Value]


def merge(first: ir.Model, later: ir.Model) -> ir.Model:
    """One model of the step without past and the step with it; both are taken apart.

    Initialisers in files that bear the same name are the same.
    """
    names = [str(value.name) for value in first.graph.outputs]
    inputs = {str(v.name): v for graph in (first.graph, later.graph) for v in graph.inputs}
    switch = ir.Value(name=SWITCH, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.BOOL))
    outer = ir.Graph(
        [*map(_twin, inputs.values()), switch],
        [],
        nodes=[],
        opset_imports={**first.graph.opset_imports, **later.graph.opset_imports},
        name=first.graph.name,
    )
    declared = [_twin(value) for value in first.graph.outputs]
    shared: Shared = {}
    branches = {
        "then_branch": _branch(outer, later.graph, "later", names, declared, shared),
        "else_branch": _branch(outer, first.graph, "first", names, declared, shared),
    }
    attributes = [ir.AttrGraph(key, graph) for key, graph in branches.items()]
    outer.append(ir.Node("", "If", [switch], attributes, outputs=declared))
    outer.outputs.extend(declared)
    return ir.Model(outer, ir_version=first.ir_version, producer_name=first.producer_name)


def _twin(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type)


def _branch(
    outer: ir.Graph,
    graph: ir.Graph,
    prefix: str,
    names: list[str],
    declared: list[ir.Value],
    shared: Shared,
) -> ir.Graph:
    """A graph's nodes as a branch that reads from `outer`; weights go to `outer`."""
    outputs = {str(value.name): value for value in graph.outputs}
    known = {str(value.name): value for value in outer.inputs}
    for value in list(graph.inputs):
        value.replace_all_uses_with(known[str(value.name)])
    _move_weights(outer, graph, prefix)
    nodes = list(graph)
    graph.outputs.clear()
    graph.remove(nodes)
    kept = [node for node in nodes if not _hoisted(outer, node, prefix, shared)]
    for node in kept:
        node.name = f"{prefix}/{node.name}"
        for value in node.outputs:
            value.name = f"{prefix}/{value.name}"
    for name, told in zip(names, declared, strict=True):
        if name not in outputs:
            kept.append(_nothing(told, prefix))
            outputs[name] = kept[-1].outputs[0]
    return ir.Graph([], [outputs[name] for name in names], nodes=kept, name=prefix)


def _move_weights(outer: ir.Graph, graph: ir.Graph, prefix: str) -> None:
    for name in list(graph.initializers):
        value = graph.initializers.pop(name)
        is_stored = isinstance(value.const_value, ir.ExternalTensor)
        own = name if is_stored else f"{prefix}/{name}"
        if own in outer.initializers:
            value.replace_all_uses_with(outer.initializers[own])
            continue
        value.name = own
        if value.const_value is not None:
            value.const_value.name = own
        outer.register_initializer(value)


def _hoisted(outer: ir.Graph, node: ir.Node, prefix: str, shared: Shared) -> bool:
    """Move a node that reads weights alone out of its branch, or take the one that is there already."""
    stored = [value for value in node.inputs if value is not None]
    made = {id(value) for value in shared.values()}
    outside = all(value.is_initializer() or id(value) in made for value in stored)
    if not stored or not outside or node.op_type not in _OF_WEIGHTS:
        return False
    attributes = sorted(str(attribute) for attribute in node.attributes.values())
    key = (node.op_type, *attributes, *map(_identity, stored))
    if key in shared:
        node.outputs[0].replace_all_uses_with(shared[key])
        return True
    node.name = f"{prefix}/{node.name}"
    node.outputs[0].name = f"shared/{len(shared)}"
    outer.append(node)
    shared[key] = node.outputs[0]
    return True


def _identity(value: ir.Value) -> object:
    """What makes two inputs the same: their content for small constants, else their name."""
    if isinstance(value.const_value, ir.ExternalTensor) or value.const_value is None:
        return value.name
    return value.const_value.numpy().tobytes()


def _nothing(declared: ir.Value, prefix: str) -> ir.Node:
    """A constant without elements where a branch has nothing to say."""
    shape = [] if declared.shape is None else [0, *list(declared.shape)[1:]]
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    dtype = declared.dtype or ir.DataType.FLOAT
    empty = ir.tensor(np.zeros(sizes, dtype.numpy()), dtype=dtype)
    node = ir.node("Constant", [], {"value": empty})
    node.outputs[0].name = f"{prefix}/nothing.{declared.name}"
    return node
