"""Traced graphs made ready: rewritten, their weights bound to files, serialised.

Where graph rewrites hook in: `REWRITES` is a list of functions `(traced, checkpoint) -> None` that change
`traced.model` (an `onnx_ir.Model`) in place.  They run on the optimised graph, while every matrix is still
one initialiser used by plain `MatMul`, `Gemm` or `Gather`, has no value, and is named in `traced.sources`
(initialiser -> tensor of the checkpoint, whose `grid` says whether it holds codes).  After them `_onnx_bind`
puts ONNX Runtime's operators for codes in, and points every initialiser at its external data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.exporters import _onnx_bind, _onnx_fuse, _onnx_merge, _onnx_trace
from gpt54_convert.exporters._onnx_layout import MERGED, Layout
from gpt54_convert.exporters._onnx_store import Store
from gpt54_convert.exporters._onnx_trace import Traced
from gpt54_convert.exporters._sink import SinkOptions

REWRITES: list[Callable[[Traced, Checkpoint], None]] = [_onnx_fuse.rewrite]
PRODUCER = "gpt54-convert"
_PLAIN = Layout()
_NO_OPTIONS = SinkOptions("", "")


def files(
    checkpoint: Checkpoint,
    views: Mapping[str, LazyTensor],
    store: Store,
    dtype: str,
    names: Layout = _PLAIN,
    options: SinkOptions = _NO_OPTIONS,
) -> dict[str, bytes]:
    """File name -> content of every graph."""
    bound = {}
    for traced in _onnx_trace.trace(checkpoint, dtype):
        own = {name: _own(store, name, names.data(traced.stem)) for name in views}
        bound[traced.stem] = _bound(traced, checkpoint, views, own, store, options)
    if names.merged and "decoder_model" in bound:
        pair = bound.pop("decoder_model"), bound.pop("decoder_with_past_model")
        bound[MERGED] = _onnx_merge.merge(*pair)
    return {names.graph(stem): _serialised(model) for stem, model in bound.items()}


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
    for rewrite in REWRITES:
        rewrite(traced, checkpoint)
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
    return match is not None and match.weight.conv1d and not match.is_bias


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
