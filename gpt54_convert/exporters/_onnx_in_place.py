"""A decoder's second graph, over the same weights, that writes keys and values where the past stands.

`model.onnx` copies keys and values at every token, which costs the more the longer the text.  Here ONNX
Runtime's GroupQueryAttention adds them to buffers as long as the longest text, if whoever runs it binds each
past and its present to one buffer, as onnxruntime-genai does (`past_present_share_buffer`).  It rotates
queries and keys by itself, at positions that it counts from the mask, so the graph takes no position_ids:
rows may be padded behind, never in front, and several tokens after a past are read in one row alone (the
operator says so where they are not).

Only for attentions whose mask is causal without more (`_onnx_mask`), rotated by tables of the position.
Source: onnxruntime, docs/ContribOperators.md: com.microsoft.GroupQueryAttention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gpt54_convert.exporters import _onnx_mask
from gpt54_convert.exporters._onnx_bind import DOMAIN
from gpt54_convert.exporters._onnx_fuse import sweep
from gpt54_convert.exporters._onnx_join import integers, take_over
from gpt54_convert.exporters._onnx_layout import IN_PLACE_LONGEST

_HEAD = 16  # what sizes of heads must be multiples of, if the operator is to rotate them
_POSITIONS, _MASK = "position_ids", "attention_mask"


@dataclass(frozen=True)
class _Found:
    """An attention that can be made so: query and key before their rotation, and the halves of its tables."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    cosine: ir.Value
    sine: ir.Value


def of(model: ir.Model, longest: int) -> ir.Model | None:
    """That graph, made of a copy of the finished `model.onnx`; None where one of its attentions is unfit.

    longest: of texts, in tokens.
    """
    copy = model.clone()
    graph = copy.graph
    inputs = {str(value.name): value for value in graph.inputs}
    found = [_fit(node) for node in graph if node.op_type == "Attention"]
    if not found or None in found or not {_POSITIONS, _MASK} <= set(inputs):
        return None
    if not _tables_alone(inputs[_POSITIONS]):
        return None
    builder = _Builder(graph)
    lengths = builder.lengths(inputs[_MASK])
    tables = builder.tables(inputs[_POSITIONS], min(longest, IN_PLACE_LONGEST))
    for each in found:
        assert each is not None
        builder.replace(each, lengths, [tables(each.cosine), tables(each.sine)])
    sweep(graph)
    graph.sort()
    pasts = [value for name, value in inputs.items() if name.startswith("past_key_values.")]
    if inputs[_POSITIONS].uses() or any(len(value.uses()) != 1 for value in pasts):
        return None
    graph.inputs.remove(inputs[_POSITIONS])
    presents = [value for value in graph.outputs if str(value.name).startswith("present.")]
    for value in (*pasts, *presents):
        if value.shape is not None:
            value.shape = ir.Shape(["batch_size", value.shape[1], "buffer_length", value.shape[3]])
    return copy


def _fit(node: ir.Node) -> _Found | None:
    if len(node.inputs) != 6 or len(node.outputs) != 3:
        return None
    rotated, rotated_key, _, mask, past, _ = node.inputs
    query, key = (value.producer() if value is not None else None for value in (rotated, rotated_key))
    if query is None or key is None or mask is None or past is None:
        return None
    tables = list(query.inputs[1:3])
    rotation = query.op_type == key.op_type == "RotaryEmbedding" and tables == list(key.inputs[1:3])
    size = past.shape[3] if past.shape is not None else None
    fits = isinstance(size, int) and size % _HEAD == 0 and past.is_graph_input()
    if mask.name != _onnx_mask.NAME or not rotation or not fits:
        return None
    return _Found(node, query.inputs[0], key.inputs[0], *tables)  # type: ignore[arg-type]


def _tables_alone(positions: ir.Value) -> bool:
    """Whether positions serve the tables of rotation and nothing else."""
    waiting, made = [positions], {positions}
    nodes: list[ir.Node] = []
    while waiting:
        for use in waiting.pop().uses():
            if use.node.op_type != "RotaryEmbedding" and use.node not in nodes:
                nodes.append(use.node)
                waiting += use.node.outputs
                made.update(use.node.outputs)
    return all(
        value is None or value in made or value.is_initializer() for node in nodes for value in node.inputs
    )


class _Builder:
    """Puts operators in; what all layers share is made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph

    def op(self, kind: str, inputs: Sequence[ir.Value | None], **attributes: int) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes)
        self._graph.append(node)
        return node.outputs[0]

    def lengths(self, mask: ir.Value) -> list[ir.Value]:
        """The tokens of every row less one, and those of the longest."""
        one = integers(self._graph, [1])
        counts = self.op("Sub", [self.op("ReduceSum", [mask, one], keepdims=0), one])
        total = self.op("Squeeze", [self.op("Shape", [mask], start=1, end=2)])
        return [self.op("Cast", [value], to=int(ir.DataType.INT32)) for value in (counts, total)]

    def tables(self, positions: ir.Value, count: int) -> _Tables:
        """Rotation of the first `count` positions, whatever positions are given; known when it is loaded."""
        scalars = [integers(self._graph, number) for number in (0, count, 1)]
        first = integers(self._graph, [0])
        known = self.op("Unsqueeze", [self.op("Range", scalars), first])
        positions.replace_all_uses_with(known)
        return _Tables(self, first)

    def replace(self, found: _Found, lengths: Sequence[ir.Value], tables: Sequence[ir.Value]) -> None:
        """One attention; query, key and value of one product enter as they come out of it."""
        node, value = found.node, found.node.inputs[2]
        split = found.query.producer()
        entering: list[ir.Value | None] = [found.query, found.key, value]
        if split is not None and split.op_type == "Split" and list(split.outputs) == entering:
            entering = [split.inputs[0], None, None]
        numbers = {
            "num_heads": node.attributes.get_int("q_num_heads", 0),
            "kv_num_heads": node.attributes.get_int("kv_num_heads", 0),
            "scale": node.attributes.get_float("scale", 1.0),
            "do_rotary": 1,
        }
        inputs = [*entering, *node.inputs[4:6], *lengths, *tables]
        new = ir.node("GroupQueryAttention", inputs, numbers, domain=DOMAIN, num_outputs=3)
        self._graph.append(new)
        for old, made in zip(node.outputs, new.outputs, strict=True):
            take_over(old, made)


class _Tables:
    """Tables of rotation [1, positions, half] as [positions, half]."""

    def __init__(self, builder: _Builder, first: ir.Value) -> None:
        self._builder, self._first = builder, first
        self._made: dict[ir.Value, ir.Value] = {}

    def __call__(self, table: ir.Value) -> ir.Value:
        if table not in self._made:
            self._made[table] = self._builder.op("Squeeze", [table, self._first])
        return self._made[table]
