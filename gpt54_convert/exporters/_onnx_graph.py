"""Traced graphs made ready: rewritten, their weights bound to files, serialised.

Where graph rewrites hook in: `REWRITES` is a list of functions `(traced, checkpoint) -> None` that change
`traced.model` (an `onnx_ir.Model`) in place.  They run on the optimised graph, while every matrix is still
one initialiser used by plain `MatMul`, `Gemm` or `Gather`, has no value, and is named in `traced.sources`
(initialiser -> tensor of the checkpoint, whose `grid` says whether it holds codes).  After them `_onnx_bind`
puts ONNX Runtime's operators for codes in, and points every initialiser at its external data; `_onnx_join`
makes one product of neighbours, and `_onnx_in_place` a decoder's second graph of the finished first one.

A rewrite makes graphs faster and nothing else: the plain graphs, without any, read the same files of weights
and take over where a rewritten one fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import ConvertError
from gpt54_convert.exporters import (
    _onnx_bind,
    _onnx_fuse,
    _onnx_in_place,
    _onnx_join,
    _onnx_mask,
    _onnx_merge,
    _onnx_trace,
)
from gpt54_convert.exporters._genai_config import longest_text
from gpt54_convert.exporters._onnx_layout import IN_PLACE, MERGED, Layout
from gpt54_convert.exporters._onnx_store import Store
from gpt54_convert.exporters._onnx_trace import Traced
from gpt54_convert.exporters._sink import SinkOptions

Rewrites = list[Callable[[Traced, Checkpoint], None]]
REWRITES: Rewrites = [_onnx_fuse.rewrite, _onnx_mask.rewrite]
PRODUCER = "gpt54-convert"
_PLAIN = Layout()
_NO_OPTIONS = SinkOptions("", "")


@dataclass(frozen=True)
class Graphs:
    """The graphs of one artifact.

    contents: by file name.  problem: why they are plain ones although rewritten ones were wanted, or nothing.
    in_place_problem: why the second graph of a decoder is missing although it should be there, or nothing.
    """

    contents: dict[str, bytes]
    problem: str = ""
    in_place_problem: str = ""


def files(
    checkpoint: Checkpoint,
    views: Mapping[str, LazyTensor],
    store: Store,
    dtype: str,
    names: Layout = _PLAIN,
    options: SinkOptions = _NO_OPTIONS,
    plain: bool = False,
) -> Graphs:
    """Every graph, rewritten unless it shall be `plain` or a rewrite fails."""
    problem = ""
    traced = _onnx_trace.trace(checkpoint, dtype)
    if not plain:
        try:
            bound = _drawn(traced, REWRITES, checkpoint, views, store, names, options)
            return _with_in_place(bound, checkpoint, names)
        except Exception as error:  # of a model nobody has seen yet, a rewrite may expect anything
            problem = in_short(error)
        traced = _onnx_trace.trace(checkpoint, dtype)
    plain_ones = _drawn(traced, [], checkpoint, views, store, names, options)
    return Graphs(_contents(plain_ones, names), problem)


def _with_in_place(bound: Mapping[str, ir.Model], checkpoint: Checkpoint, names: Layout) -> Graphs:
    """The graphs, and of a decoder in optimum's layout the one that writes its past in place."""
    extra, problem = {}, ""
    if not names.folder and "model" in bound:
        try:
            made = _onnx_in_place.of(bound["model"], longest_text(checkpoint.config))
            extra = {Path(IN_PLACE).stem: made} if made is not None else {}
        except Exception as error:  # as above
            problem = in_short(error)
    return Graphs(_contents({**bound, **extra}, names), in_place_problem=problem)


def _contents(bound: Mapping[str, ir.Model], names: Layout) -> dict[str, bytes]:
    return {names.graph(stem): _serialised(model) for stem, model in bound.items()}


def in_short(error: Exception) -> str:
    """One line of what an exception says; its kind too, where it was not made for people."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, ConvertError) else f"{type(error).__name__}: {text}"


def _drawn(
    graphs: Iterable[Traced],
    rewrites: Rewrites,
    checkpoint: Checkpoint,
    views: Mapping[str, LazyTensor],
    store: Store,
    names: Layout,
    options: SinkOptions,
) -> dict[str, ir.Model]:
    bound = {}
    for traced in graphs:
        for rewrite in rewrites:
            rewrite(traced, checkpoint)
        own = {name: _own(store, name, names.data(traced.stem)) for name in views}
        bound[traced.stem] = _bound(traced, checkpoint, views, own, store, options)
        if rewrites:
            _onnx_join.join(bound[traced.stem].graph)
    if names.merged and "decoder_model" in bound:
        pair = bound.pop("decoder_model"), bound.pop("decoder_with_past_model")
        bound[MERGED] = _onnx_merge.merge(*pair)
    return bound


def _own(store: Store, name: str, file: str) -> str:
    """The copy of a tensor that stands in the graph's own file of weights, if it has one there."""
    return f"{name}@{file}" if f"{name}@{file}" in store.parts else name


def _bound(
    traced: Traced,
    checkpoint: Checkpoint,
    views: Mapping[str, LazyTensor],
    own: Mapping[str, str],
    store: Store,
    options: SinkOptions,
) -> ir.Model:
    graph = traced.model.graph
    for name, source in traced.sources.items():
        turned = _is_conv1d(checkpoint, source)
        _onnx_bind.bind(
            graph, graph.initializers[name], views[source], store.parts[own[source]], turned, options
        )
    return traced.model


def _is_conv1d(checkpoint: Checkpoint, name: str) -> bool:
    """Whether transformers holds this matrix as [in, out], where a checkpoint has [out, in]."""
    match = archs.by_name(checkpoint.architecture).match(name) if checkpoint.architecture else None
    return match is not None and match.is_turned


def _serialised(model: ir.Model) -> bytes:
    """The graph's bytes, without the shapes of what lies between inputs and outputs: runtimes infer them."""
    graph = model.graph
    for number, node in enumerate(graph):
        node.name = f"{node.op_type}_{number}"
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
    graph.name = model.producer_name = PRODUCER
    content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return content
