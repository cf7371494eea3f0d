"""Graphs that were just written, beside torch on the very numbers that were stored: the trace is on trial.

The weights are read back from the files, so that packing is on trial too.  Codes are computed with twice: as
the graph says, with activations in 8 bits, where only gross errors show, and exactly, where the graph must
give torch's logits.  The batch is padded, its rows stand at different positions, and it is run at once and in
two halves, the second with past: what goes wrong silently in traced graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from gpt54_convert import archs
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import OutputError
from gpt54_convert.exporters._onnx_exact import exact
from gpt54_convert.exporters._onnx_layout import IN_PLACE
from gpt54_convert.forward.batch import Batch, Document, stack
from gpt54_convert.forward.onnx_in_place import InPlaceModel
from gpt54_convert.forward.onnx_model import OnnxModel
from gpt54_convert.forward.torch_model import TorchReference

LENGTHS, SOURCES = (7, 12, 4), (5, 9, 6)
# The largest difference allowed, relative to the largest logit; where activations are rounded to 8 bits, the
# root mean square of the differences relative to that of the logits, since single ones may be far off.
EXACT, HALF, ROUNDED = 1e-4, 0.05, 0.5
_NOISE = 4.0  # times what float32 itself leaves, in models that make much of it
# By scales that were measured on text: tokens drawn at random may lie far beyond; numbers they must be.
FIXED = float("inf")


def check_logits(
    folder: Path, graphs: Mapping[str, bytes], stored: Checkpoint, half: bool, fixed: bool = False
) -> None:
    """Compare the graphs in `folder` with torch.

    stored: the checkpoint that was written, its tensors read back from the files.
    half: the graphs compute in float16.  fixed: activations are rounded by scales that were measured before.
    Raises OutputError where the logits differ, InputError where ONNX Runtime cannot load what was written.
    """
    _check_copies(stored.tensors)
    expected = _Expected(stored)
    graphs = {name: exact(graph) for name, graph in graphs.items() if name != IN_PLACE}
    expected.demand(OnnxModel(folder, expected.kind, 1, graphs), HALF if half else EXACT)
    if expected.is_quantized:
        expected.demand(OnnxModel(folder, expected.kind, 1), FIXED if fixed else ROUNDED)


def check_in_place(folder: Path, graph: bytes, stored: Checkpoint, half: bool, fixed: bool = False) -> None:
    """Compare a decoder's second graph with torch, document by document, as `check_logits` does the first."""
    expected, path = _Expected(stored), folder / IN_PLACE
    expected.demand(InPlaceModel(path, 1, exact(graph)), HALF if half else EXACT)
    if expected.is_quantized:
        expected.demand(InPlaceModel(path, 1), FIXED if fixed else ROUNDED)


class _Expected:
    """torch's answers to one batch, on the numbers that were stored."""

    def __init__(self, stored: Checkpoint) -> None:
        architecture = archs.by_name(stored.architecture or "")
        self.kind = architecture.kind
        self.is_quantized = any(tensor.grid for tensor in stored.tensors.values())
        self._stored, self._batch = stored, _batch(stored.tensors.values(), architecture)
        with TorchReference(stored, threads=1, keep_bytes=0) as reference:
            self._logits = reference.logits(self._batch)

    def demand(self, model: OnnxModel | InPlaceModel, limit: float) -> None:
        """OutputError where a model answers otherwise; limit: relative, see above."""
        real = self._batch.mask.astype(bool)
        measure = _root_mean_square if limit in (ROUNDED, FIXED) else _largest
        scale = measure(self._logits[real])
        with model:
            for in_two in (False, True):
                error = measure((model.logits(self._batch, in_two) - self._logits)[real])
                if not error <= limit * scale and not error <= _NOISE * self._noise():  # a NaN fails too
                    where = "with past" if in_two else "without past"
                    raise OutputError(
                        f"the ONNX graph differs from transformers {where} by {error:.3g} on logits of "
                        f"{scale:.3g} (allowed: {limit:g} of that)"
                    )

    def _noise(self) -> float:
        """How far torch's own float32 is from float64, at most."""
        found = 0.0
        with TorchReference(self._stored, threads=1, dtype=torch.float64, keep_bytes=0) as reference:
            # One by one: transformers' masks of padded batches overflow in float64.
            for row, document in enumerate(self._batch.documents):
                exactly, count = reference.logits(stack([document], 0))[0], len(document.tokens)
                found = max(found, _largest(exactly[:count] - self._logits[row, :count]))
        return found


def check_structure(folder: Path, graphs: Mapping[str, bytes]) -> None:
    """Look whether every value is made before it is used, and every weight lies within its file.

    (ONNX's own checker does not know ONNX Runtime's operators.)  Raises OutputError where it is not so.
    """
    for name, content in graphs.items():
        graph = onnx.ModelProto.FromString(content).graph
        known = {"", *(each.name for each in (*graph.input, *graph.initializer))}
        for node in graph.node:
            _demand_known(name, node.input, known)
            known.update(node.output)
        _demand_known(name, [each.name for each in graph.output], known)
        for tensor in graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place and int(place["offset"]) + int(place["length"]) > _size(folder / place["location"]):
                raise OutputError(f"{name}: {tensor.name} lies beyond its file's end")


def _demand_known(name: str, used: Iterable[str], known: set[str]) -> None:
    for value in used:
        if value not in known:
            raise OutputError(f"{name}: the graph uses {value!r}, which nothing makes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_copies(tensors: Mapping[str, LazyTensor]) -> None:
    """What stands in two files (`tensor@file`) is the same in both."""
    for name, copy in tensors.items():
        first = tensors[name.partition("@")[0]]
        if first is not copy and not all(
            np.array_equal(first.float_rows(*rows), copy.float_rows(*rows)) for rows in copy.chunks()
        ):
            raise OutputError(f"tensor {name}: was not written as in its first file")


def _largest(values: NDArray[np.float32]) -> float:
    return float(np.abs(values).max())


def _root_mean_square(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def _batch(tensors: Iterable[LazyTensor], architecture: archs.Architecture) -> Batch:
    """Documents of different lengths, their tokens spread over the vocabulary."""
    matches = [(architecture.match(tensor.name), tensor) for tensor in tensors]
    vocabulary = max(t.row_count for match, t in matches if match is not None and match.role == "embed")
    generator = np.random.default_rng(0)

    def tokens(length: int) -> NDArray[np.int64]:
        return generator.integers(0, vocabulary, length, np.int64)

    is_pair, documents = architecture.kind == "encoder-decoder", []
    for length, source in zip(LENGTHS, SOURCES, strict=True):
        row = tokens(length)
        documents.append(Document(row, row, tokens(source) if is_pair else None))
    return stack(documents, 0)
