"""Products of one input with several matrices of codes made one product: those of query, key and value.

It happens where their codes, scales, zero points and biases stand one behind the other in the files
(`_onnx_layout.neighbours` says which shall), so that the joint matrix is a view over what is stored once, and
graphs without joined operators read the very same bytes as matrices of their own.  A joint initialiser bears
the names of what it covers, in their order: `A+B+C.codes`; a `Split` hands the parts of the product on, and
says how many rows each has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import onnx_ir as ir

from gpt54_convert.packing.onnx import AND

KIND = "MatMulNBits"
_BIAS = 5  # which input of MatMulNBits it is
Nodes = Sequence[ir.Node]


def join(graph: ir.Graph) -> int:
    """Join what can be joined, in place; how many joint products there are."""
    count = 0
    for value in list(
        {id(node.inputs[0]): node.inputs[0] for node in graph if node.op_type == KIND}.values()
    ):
        users = [use.node for use in value.uses() if use.idx == 0] if value is not None else []
        for run in _runs([node for node in users if node.op_type == KIND and len(node.inputs) <= _BIAS]):
            _replace(graph, run)
            count += 1
    return count


def _runs(nodes: Nodes) -> Iterable[Nodes]:
    """Products whose matrices stand one behind the other, at least two."""
    run: list[ir.Node] = []
    for node in sorted(nodes, key=lambda node: _tensor(node.inputs[1]).offset or 0):
        if run and not _follows(run[-1], node):
            yield from [run] if len(run) > 1 else []
            run = []
        run.append(node)
    yield from [run] if len(run) > 1 else []


def _follows(first: ir.Node, second: ir.Node) -> bool:
    sizes = [
        {name: node.attributes.get_int(name, 0) for name in ("K", "bits", "block_size", "accuracy_level")}
        for node in (first, second)
    ]
    pairs = list(zip(first.inputs[1:], second.inputs[1:], strict=False))
    alike = sizes[0] == sizes[1] and len(first.inputs) == len(second.inputs)
    return alike and all(_is_next(*pair) for pair in pairs)


def _is_next(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether the second begins in the file where the first ends; two that are not there do."""
    if first is None or second is None:
        return first is second
    one, two = first.const_value, second.const_value
    if not isinstance(one, ir.ExternalTensor) or not isinstance(two, ir.ExternalTensor):
        return False
    together = one.location == two.location and one.dtype == two.dtype
    return bool(together and (one.offset or 0) + (one.length or 0) == two.offset)


def _replace(graph: ir.Graph, run: Nodes) -> None:
    rows = [node.attributes.get_int("N", 0) for node in run]
    inputs: list[ir.Value | None] = [run[0].inputs[0]]
    for place in range(1, len(run[0].inputs)):
        parts = [node.inputs[place] for node in run]
        inputs.append(None if None in parts else _joint(graph, parts))
    outputs = [node.outputs[0] for node in run]
    sums = _sums(outputs)
    if sums:
        inputs += [None] * (_BIAS - len(inputs)) + [_joint_bias(graph, sums)]
        outputs = [node.outputs[0] for node in sums]
    attributes = [run[0].attributes[name] for name in run[0].attributes if name != "N"]
    node = ir.Node(run[0].domain, KIND, inputs, [*attributes, ir.AttrInt64("N", sum(rows))])
    sizes = integers(graph, rows)
    split = ir.node("Split", [node.outputs[0], sizes], {"axis": -1}, num_outputs=len(run))
    graph.insert_before(next(each for each in graph if each in run), [node, split])
    for old, new in zip(outputs, split.outputs, strict=True):
        take_over(old, new)
    for each in (*sums, *run):
        graph.remove(each, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        if not graph.initializers[name].is_graph_output():
            del graph.initializers[name]


def take_over(old: ir.Value, new: ir.Value) -> None:
    """`new` in the place of `old`, under its name."""
    name, new.type, new.shape = old.name, old.type, old.shape
    old.name = f"{name}.apart"
    new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _sums(products: Sequence[ir.Value]) -> list[ir.Node]:
    """The additions of biases that stand one behind the other, to these products and nothing else."""
    users = [list(product.uses()) for product in products]
    found = [uses[0].node for uses in users if len(uses) == 1 and uses[0].node.op_type == "Add"]
    if len(found) < len(products) or any(product.is_graph_output() for product in products):
        return []
    biases = [_bias(node) for node in found]
    casts = {caster and caster.attributes.get_int("to", 0) for _, caster in biases}
    stored = [bias for bias, _ in biases]
    together = all(_is_next(*pair) for pair in pairwise(stored))
    return found if len(casts) == 1 and None not in stored and together else []


def _bias(addition: ir.Node) -> tuple[ir.Value | None, ir.Node | None]:
    """The stored vector that is added, and what casts it if anything does."""
    for value in addition.inputs:
        producer = value.producer() if value is not None else None
        if producer is None and value is not None and isinstance(value.const_value, ir.ExternalTensor):
            return value, None
        if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
            source = producer.inputs[0]
            if isinstance(source.const_value, ir.ExternalTensor):
                return source, producer
    return None, None


def _joint_bias(graph: ir.Graph, sums: Nodes) -> ir.Value:
    stored, casts = zip(*map(_bias, sums), strict=True)
    joint = _joint(graph, stored)
    if casts[0] is None:
        return joint
    kind = casts[0].attributes.get_int("to", 0)
    node = ir.node("Cast", [joint], {"to": kind})
    graph.insert_before(graph[0], node)
    node.outputs[0].name, node.outputs[0].type = f"{joint.name}.cast", ir.TensorType(ir.DataType(kind))
    return node.outputs[0]


def _joint(graph: ir.Graph, values: Sequence[ir.Value]) -> ir.Value:
    """One initialiser over several that stand one behind the other."""
    tensors = [_tensor(value) for value in values]
    first = tensors[0]
    shape = ir.Shape([sum(int(each.shape[0]) for each in tensors), *list(first.shape)[1:]])
    length = sum(each.length or 0 for each in tensors)
    name = joint_name([str(value.name) for value in values])
    tensor = ir.ExternalTensor(first.location, first.offset, length, first.dtype, shape=shape, name=name)
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(first.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def joint_name(names: Sequence[str]) -> str:
    """`A.codes`, `B.codes` -> `A+B.codes`; names without a part in common are joined whole."""
    bases, parts = zip(*(name.rsplit(".", 1) for name in names), strict=True)
    if parts[0] in ("codes", "scales", "zero_points") and len(set(parts)) == 1:
        return f"{AND.join(bases)}.{parts[0]}"
    return AND.join(names)


def _tensor(value: ir.Value | None) -> ir.ExternalTensor:
    assert value is not None and isinstance(value.const_value, ir.ExternalTensor)
    return value.const_value


def integers(graph: ir.Graph, numbers: Sequence[int] | int) -> ir.Value:
    """An initialiser that holds them; made once."""
    name = f"integer.{numbers}" if isinstance(numbers, int) else f"integers.{'.'.join(map(str, numbers))}"
    if name not in graph.initializers:
        tensor = ir.tensor(
            numbers if isinstance(numbers, int) else list(numbers), dtype=ir.DataType.INT64, name=name
        )
        kind = ir.TensorType(ir.DataType.INT64)
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=kind, const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
