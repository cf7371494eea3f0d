"""Graphs that were just written on trial, and the plain ones in their place where joined operators fail.

Joined operators make a graph faster and nothing else.  In a model that nobody has seen yet they may be
wrong, or such that ONNX Runtime refuses them; then its user is served with a plain graph.  Weights are not
touched: every graph reads the same files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt54_convert.errors import OutputError
from gpt54_convert.exporters import _onnx_check, _onnx_read
from gpt54_convert.exporters._onnx_graph import in_short
from gpt54_convert.exporters._onnx_layout import IN_PLACE

if TYPE_CHECKING:
    from gpt54_convert.exporters.onnx import OnnxSink

# Weights up to this size are checked on logits before they are published; of larger ones the first layers,
# written once more as a model of their own, where those stay below the second limit.
CHECK_BYTES, SHALLOW_BYTES = 128_000_000, 1_000_000_000


def hold(sink: OnnxSink) -> None:
    """Check the graphs of a finished sink; where they fail, check and leave plain ones there instead.

    Raises OutputError where the plain ones do not give torch's logits either.
    """
    with _first_layers(sink) as ran:
        if not sink.problem:
            try:
                _check(sink, ran)
                _hold_in_place(sink, ran)
                return
            except Exception as error:  # a joined operator may fail in any way
                problem = in_short(error).replace(f"{(ran or sink).place}/", "")  # a name of a moment
            for each in {id(each): each for each in (sink, ran) if each is not None}.values():
                each.draw(problem)
                each.write_graphs()
        try:
            _check(sink, ran)
        except OutputError as error:
            advice = "try --dtype float32" if sink.dtype == "float16" else "please report it"
            raise OutputError(f"{error}, so it was not published; {advice}") from error


@contextmanager
def _first_layers(sink: OnnxSink) -> Iterator[OnnxSink | None]:
    """What is run beside torch: the model, or of a large one its first layers; None where those are large."""
    if sink.store.size_bytes <= CHECK_BYTES:
        yield sink
        return
    with tempfile.TemporaryDirectory(prefix=".check-", dir=sink.folder) as folder:
        options = replace(sink.options, shard_bytes=None)
        small = type(sink)(_onnx_read.shallow(sink.read_back()), Path(folder), options, sink.problem)
        if small.store.size_bytes > SHALLOW_BYTES:
            yield None
            return
        for view in small.views():
            for start, stop in view.chunks():
                rows: Any = view.read_codes and view.read_codes(start, stop)
                small.put(view.name, start, stop, rows or view.rows(start, stop))
        small.finish()
        yield small


def _hold_in_place(sink: OnnxSink, ran: OnnxSink | None) -> None:
    """Check the second graph of a decoder; where it fails, do without."""
    if IN_PLACE not in sink.graphs or ran is None:
        return
    try:
        if IN_PLACE not in ran.graphs:
            raise OutputError("of its first layers alone it could not be made")
        options = ran.dtype == "float16", ran.options.ranges is not None
        _onnx_check.check_in_place(ran.place, ran.graphs[IN_PLACE], ran.read_back(), *options)
    except Exception as error:  # as above
        sink.drop_in_place(in_short(error).replace(f"{ran.place}/", ""))
        sink.write_graphs()


def _check(sink: OnnxSink, ran: OnnxSink | None) -> None:
    if ran is not sink:
        _onnx_check.check_structure(sink.place, sink.graphs)
    if ran is None:
        return
    if ran.problem and not sink.problem:  # the first layers have become plain, and would prove nothing
        raise OutputError(ran.problem)
    _onnx_check.check_logits(
        ran.place, ran.graphs, ran.read_back(), ran.dtype == "float16", ran.options.ranges is not None
    )
