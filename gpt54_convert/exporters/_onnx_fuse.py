"""A traced graph's small operators joined into ONNX Runtime's large ones: norms, rotation, attention.

Norms are found by onnxscript's own rules (`_onnx_norms`).  Attention is not left to them: they keep one row's
positions for all rows.  Here the `Attention` of ONNX gets the very mask that transformers computed, as an
additive bias, and `RotaryEmbedding` the cosines and sines of every row's own positions, so that padded rows,
rows at different positions, relative positions and sliding windows mean what they meant before.  (ONNX
Runtime's own `GroupQueryAttention` refuses several tokens after a past in more than one row; it has a graph
of its own, `_onnx_in_place`.)  What does not look as expected stays as it is.

Source: ONNX operators, opset 23: Attention, RotaryEmbedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.exporters import _onnx_norms
from gpt54_convert.exporters._onnx_join import integers, take_over
from gpt54_convert.exporters._onnx_trace import Traced

OPSET = 23  # the first with Attention; what traced graphs use of opset 20 means the same in it


@dataclass(frozen=True)
class Attention:
    """One attention found: values by what they are, shaped [batch, heads, time, size].

    query, key, value: keys and values of these tokens alone where there is a past, else all.
    past, present: keys and values before and with these tokens; empty where there is no past.
    masks: added to the scores, each broadcast to [batch, heads, time, total].
    product: what it answers.  flat: that as [batch, time, heads · size], or further flattened.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    past: tuple[ir.Value, ...]
    present: tuple[ir.Value, ...]
    masks: tuple[ir.Value, ...]
    scale: float
    product: ir.Value
    flat: ir.Value


def rewrite(traced: Traced, checkpoint: Checkpoint) -> None:
    """`fuse` as one of `_onnx_graph.REWRITES`."""
    fuse(traced.model)
    for node in traced.model.graph:  # onnxscript notes there where it was installed
        node.metadata_props.clear()


def fuse(model: ir.Model) -> int:
    """Join what can be joined, in place; how many attentions became one operator."""
    _onnx_norms.fuse(model)
    graph = model.graph
    found = [match for node in list(graph) if (match := _attention(node)) is not None]
    if found:
        graph.opset_imports[""] = OPSET
        joiner = _Joiner(graph)
        for attention in found:
            joiner.replace(attention)
        sweep(graph)
        graph.sort()
    return len(found)


class _Joiner:
    """Puts the large operators in; what all layers share is made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._tables: dict[str, ir.Value] = {}

    def replace(self, found: Attention) -> None:
        """One attention, with the rotation of its query and key where that is recognised."""
        attributes: dict[str, int | float] = {"scale": found.scale}
        inputs: list[ir.Value | None] = [found.query, found.key, found.value]
        is_input = found.key.is_graph_input()  # all of them are past: taken as they come
        if not is_input:
            inputs = [self._flattened(each) for each in (found.query, found.key, found.value)]
            attributes |= {"q_num_heads": _sizes(found.query)[0], "kv_num_heads": _sizes(found.key)[0]}
        inputs += [self._sum(found.masks), *found.past]
        while inputs[-1] is None:
            inputs.pop()
        node = ir.node("Attention", inputs, attributes, num_outputs=1 + len(found.present))
        self._graph.append(node)
        output, *present = node.outputs
        if is_input:
            take_over(found.product, output)
        elif found.flat.shape is not None and len(found.flat.shape) == 3:
            take_over(found.flat, output)
        else:  # flattened further
            found.flat.producer().replace_input_with(0, output)  # type: ignore[union-attr]
        for old, new in zip(found.present, present, strict=True):
            take_over(old, new)

    def _sum(self, masks: tuple[ir.Value, ...]) -> ir.Value | None:
        """All that is added to the scores as one: relative positions and the mask, alike in all layers."""
        if len(masks) < 2:
            return masks[0] if masks else None
        name = "+".join(str(mask.name) for mask in masks)
        if name not in self._tables:
            self._tables[name] = self._op("Add", masks)
        return self._tables[name]

    def _flattened(self, value: ir.Value) -> ir.Value:
        """As [batch, time, heads · size], rotated by one operator if it was by many."""
        heads = _sizes(value)[0]
        rotation = _rotation(value)
        if rotation is None:
            return self._unturned(value)
        inner, cosine, sine = rotation
        inputs = [self._unturned(inner), self._half(cosine), self._half(sine)]
        return self._op("RotaryEmbedding", inputs, {"num_heads": heads, "interleaved": 0})

    def _unturned(self, value: ir.Value) -> ir.Value:
        """[batch, heads, time, size] as [batch, time, heads · size]."""
        heads, size = _sizes(value)
        inner = _input_of(value, "Transpose")
        if inner is None or _ints(value.producer(), "perm") != [0, 2, 1, 3]:
            inner = self._op("Transpose", [value], {"perm": [0, 2, 1, 3]})
        flat = _input_of(inner, "Reshape")
        if (
            flat is not None
            and flat.shape is not None
            and len(flat.shape) == 3
            and flat.shape[2] == heads * size
        ):
            return flat
        return self._op("Reshape", [inner, self._integers(0, 0, heads * size)])

    def _half(self, table: ir.Value) -> ir.Value:
        """The first half of cosines or sines [batch, time, size]; the second repeats it."""
        name = str(table.name)
        if name not in self._tables and table.shape is not None:
            ends = self._integers(0), self._integers(int(table.shape[2]) // 2)  # type: ignore[arg-type]
            self._tables[name] = self._op("Slice", [table, *ends, self._integers(-1)])
        return self._tables[name]

    def _op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, int | list[int]] | None = None,
    ) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes or {})
        self._graph.append(node)
        return node.outputs[0]

    def _integers(self, *values: int) -> ir.Value:
        return integers(self._graph, values)


def _attention(softmax: ir.Node) -> Attention | None:
    """The attention around a softmax, or None where it does not look as transformers' eager one does."""
    if softmax.op_type != "Softmax" or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    scores, masks = softmax.inputs[0], []
    while (pair := _pair(scores, "Add"))[0] is not None:
        scores = pair[0]
        masks.append(pair[1])
    scaled, factor = _pair(scores, "Mul")
    scale = 1.0 if scaled is None else _number(factor)
    query, turned = _pair(scores if scaled is None else scaled, "MatMul")
    keys = _keys(turned)
    product = _only_user(softmax.outputs[0], "MatMul")
    turn = _only_user(product.outputs[0], "Transpose") if product else None
    flat = _only_user(turn.outputs[0], "Reshape") if turn else None
    if product is None or flat is None or query is None or keys is None or scale is None:
        return None
    key, value = _unrepeated(keys), _unrepeated(product.inputs[1])
    if key is None or value is None or not all(_sizes(each)[0] for each in (query, key, value)):
        return None
    if not all(mask is not None and mask.shape is not None and len(mask.shape) == 4 for mask in masks):
        return None
    past: tuple[ir.Value, ...] = ()
    present: tuple[ir.Value, ...] = ()
    pairs = [_pair(each, "Concat") for each in (key, value)]
    if all(before is not None and before.is_graph_input() for before, _ in pairs):
        present, past = (key, value), tuple(before for before, _ in pairs if before is not None)
        new_key, new_value = (new for _, new in pairs)
        if new_key is None or new_value is None or not _sizes(new_key)[0] or not _sizes(new_value)[0]:
            return None
        key, value = new_key, new_value
    return Attention(
        query, key, value, past, present, tuple(masks), scale, product.outputs[0], flat.outputs[0]
    )  # type: ignore[arg-type]


def _keys(turned: ir.Value | None) -> ir.Value | None:
    """Keys [batch, heads, time, size] of [batch, heads, size, time]."""
    node = turned.producer() if turned is not None else None
    inner = _input_of(turned, "Transpose")
    if node is None or inner is None:
        return None
    if _ints(node, "perm") == [0, 1, 3, 2]:
        return inner
    if _ints(node, "perm") != [0, 2, 3, 1] or inner.shape is None or node.graph is None:
        return None
    usual = ir.node("Transpose", [inner], {"perm": [0, 2, 1, 3]})
    node.graph.append(usual)
    usual.outputs[0].shape = ir.Shape([inner.shape[axis] for axis in (0, 2, 1, 3)])
    return usual.outputs[0]


def _rotation(value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Of x·cos + (-x₂, x₁)·sin: x, cosines, sines [batch, time, size]; None for anything else."""
    straight, crossed = _pair(value, "Add")
    inner, cosine = _pair(straight, "Mul")
    halves, sine = _pair(crossed, "Mul")
    first, second = _pair(halves, "Concat")
    negated = _input_of(first, "Neg")
    cosine, sine = _input_of(cosine, "Unsqueeze"), _input_of(sine, "Unsqueeze")
    parts = (_input_of(negated, "Slice"), _input_of(second, "Slice"))
    if inner is None or cosine is None or sine is None or any(part is not inner for part in parts):
        return None
    size = _sizes(inner)[1]
    if not _spans(negated, size // 2, None) or not _spans(second, 0, size // 2):
        return None
    if any(
        table.shape is None or len(table.shape) != 3 or table.shape[2] != size for table in (cosine, sine)
    ):
        return None
    return inner, cosine, sine


def _spans(value: ir.Value | None, start: int, stop: int | None) -> bool:
    """Whether a Slice takes [start, stop) of its last axis."""
    node = value.producer() if value is not None else None
    if node is None or len(node.inputs) < 4:
        return False
    starts, stops, axes = (_number(each) for each in node.inputs[1:4])
    rank = len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else 0
    ends = stops is not None and (stops == stop if stop is not None else stops > 1 << 20)
    return starts == start and ends and axes in (-1, rank - 1)


def _unrepeated(value: ir.Value | None) -> ir.Value | None:
    """Keys or values before each was repeated for the query heads that share it."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Reshape":
        return _input_of(_input_of(node.inputs[0], "Expand"), "Unsqueeze")
    return value


def _pair(value: ir.Value | None, kind: str) -> tuple[ir.Value | None, ir.Value | None]:
    node = value.producer() if value is not None else None
    if node is None or node.op_type != kind or len(node.inputs) != 2:
        return None, None
    return node.inputs[0], node.inputs[1]


def _input_of(value: ir.Value | None, kind: str) -> ir.Value | None:
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == kind else None


def _only_user(value: ir.Value, kind: str) -> ir.Node | None:
    users = list(value.uses())
    return users[0].node if len(users) == 1 and users[0].node.op_type == kind else None


def _sizes(value: ir.Value | None) -> tuple[int, int]:
    """Heads and their size of [batch, heads, time, size]; zeros where they are not known."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return 0, 0
    heads, size = value.shape[1], value.shape[3]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else (0, 0)


def _number(value: ir.Value | None) -> float | None:
    """The one number that a constant holds."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def _ints(node: ir.Node | None, name: str) -> list[int]:
    return [] if node is None else list(node.attributes.get_ints(name, []))


def sweep(graph: ir.Graph) -> None:
    """Remove what nothing uses any more."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name in list(graph.initializers):
        value = graph.initializers[name]
        if not value.uses() and not value.is_graph_output() and value.const_value is not None:
            del graph.initializers[name]
