"""A decoder's graph that writes keys and values in place (`model_in_place.onnx`), for one row at a time.

Every past and its present are bound to one buffer, which is as long as the longest text so far wanted, and
grows by doubling.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gpt54_convert.forward.batch import Batch, Floats
from gpt54_convert.forward.onnx_model import Graph

_SHORTEST = 256


class InPlace(Graph):
    """One such graph with its buffers; `read`: the tokens that are in them."""

    def __init__(self, path: Path, threads: int, content: bytes | None = None) -> None:
        """As `Graph`.  Raises InputError where ONNX Runtime cannot load it."""
        super().__init__(path, threads, content)
        self._buffers = self.empty_past(1)
        self._binding = self._session.io_binding()
        self.read = 0

    def restart(self) -> None:
        """Forget what was read; the buffers stay."""
        self.read = 0

    def advance(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Logits [1, steps, vocabulary] of the next tokens [1, steps]."""
        total = self.read + tokens.shape[1]
        self._make_room(total)
        self._binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens))
        self._binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
        self._binding.bind_output("logits", "cpu")
        self.run_bound(self._binding)
        self.read = total
        logits: NDArray[Any] = self._binding.get_outputs()[-1].numpy()
        return logits

    def _make_room(self, total: int) -> None:
        length = next(iter(self._buffers.values())).shape[2]
        if total <= length:
            return
        length = max(_SHORTEST, 1 << (total - 1).bit_length())
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        for name, old in self._buffers.items():
            rows, heads, _, size = old.shape
            new = np.zeros((rows, heads, length, size), old.dtype)
            new[:, :, : self.read] = old[:, :, : self.read]
            self._buffers[name] = new
            place = "cpu", 0, new.dtype.type, new.shape, new.ctypes.data
            self._binding.bind_input(name, *place)
            self._binding.bind_output(name.replace("past_key_values", "present", 1), *place)


class InPlaceModel:
    """`logits` as `OnnxModel` has it, document by document."""

    def __init__(self, path: Path, threads: int, content: bytes | None = None) -> None:
        """Open the graph at `path`, or `content` in its place.  Raises InputError as `Graph` does."""
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._graph = InPlace(path, threads, content)

    def logits(self, batch: Batch, in_two: bool = True) -> Floats:
        """Logits; `in_two`: a first half, a second one after it, and the last two tokens one by one."""
        found: list[Floats] = []
        width = batch.tokens.shape[1]
        for row, length in zip(batch.tokens, batch.lengths, strict=True):
            cuts = sorted({0, length // 2, max(1, length - 2), length - 1, length} if in_two else {0, length})
            self._graph.restart()
            pieces = [self._graph.advance(row[None, a:b]) for a, b in pairwise(cuts)]
            answer = np.concatenate(pieces, axis=1)[0].astype(np.float32)
            found.append(np.pad(answer, ((0, width - length), (0, 0))))
        return np.stack(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._graph
