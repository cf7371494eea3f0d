"""The layer walk: collect, solve, run the layer again with its new weights, go on to the next one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from gpt54_convert.calibrate.collect import Collector
from gpt54_convert.calibrate.layers import Layer, LayeredModel, Parameters
from gpt54_convert.calibrate.stream import Stream
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.forward.batch import Batch
from gpt54_convert.forward.torch_model import trim
from gpt54_convert.quantize.statistics import Floats, Statistics

_HELD_PART = 8  # every eighth batch judges solutions and is not fitted to


@dataclass(frozen=True)
class Seen:
    """What one matrix met: `fit` to solve by, `held` to judge solutions by (the same, for a single batch)."""

    fit: Statistics
    held: Statistics


class Visitor(Protocol):
    """Who is told of every layer, and may change its weights."""

    moments: bool

    def known(self, names: Sequence[str]) -> Mapping[str, Floats] | None:
        """New weights [out, in] of matrices, found by `solve` or an earlier run; None if one is missing."""
        ...

    def solve(self, weights: Mapping[str, Floats], seen: Mapping[str, Seen]) -> None:
        """Find new weights for some of a layer's matrices, which are given one by one [out, in].

        None are given to a visitor that changes none (`visitor_keeps`).
        """
        ...


class Walk:
    """One walk of `visitor` through a checkpoint on some batches; `folder` holds the hidden states.

    hold: keep some batches for judging (else all are fitted to).  weights: of the tokens that enter a
    matrix, [documents, time] by its tensor's name: how much they count in its statistics.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        batches: Sequence[Batch],
        folder: Path,
        report: Report,
        threads: int = 0,
        hold: bool = True,
        weights: Mapping[str, Floats] | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.model = LayeredModel(checkpoint)
        self._batches, self._folder, self._report = batches, folder, report
        self._weights = weights or {}
        held = max(1, len(batches) // _HELD_PART) if hold and len(batches) > 1 else 0
        self._held = set(range(len(batches) - 1, -1, -(len(batches) // held))[:held]) if held else set()

    def run(self, visitor: Visitor) -> None:
        """Walk from the first layer to the head."""
        states = self._folder / "states"
        try:
            with torch.no_grad(), self._progress() as advance:
                self._run(visitor, states, advance)
        finally:
            shutil.rmtree(states, ignore_errors=True)

    def _run(self, visitor: Visitor, states: Path, advance: Any) -> None:
        model = self.model
        model.trace(self._batches[0])
        stream = Stream(model, self._batches, states)
        for number, stack in enumerate(model.stacks):
            stream.enter(number)
            for layer in stack:
                self._layer(layer, stream, visitor)
                advance(_size(layer))
        stream.leave()
        self._head(stream, visitor)

    def _layer(self, layer: Layer, stream: Stream, visitor: Visitor) -> None:
        names = list(layer.matrices())
        new, outputs_done = visitor.known(names), False
        if new is None:
            seen, outputs_done = self._collect(layer, stream, visitor)
            trim()
            met = [name for name in names if name in seen]
            for name in met:  # nothing but one matrix is held meanwhile: a layer may be large
                weights = {} if visitor_keeps(visitor) else {name: self._matrix(layer, name)}
                visitor.solve(weights, {name: seen.pop(name)})
            trim()
            new = visitor.known(met) or {}
        if new or not outputs_done:
            parameters = self.model.parameters(layer)
            _replace(layer, parameters, new)
            for index in range(len(self._batches)):
                stream.put(index, stream.run(layer, index, parameters))

    def _collect(self, layer: Layer, stream: Stream, visitor: Visitor) -> tuple[dict[str, Seen], bool]:
        parameters = self.model.parameters(layer)
        fit, held = (Collector(layer.matrices(), visitor.moments, large) for large in (True, False))
        keep = visitor_keeps(visitor)
        for index in range(len(self._batches)):
            collector = held if index in self._held else fit
            with collector.counting(self._of_batch(index, layer.matrices())):
                found = stream.run(layer, index, parameters)
            if keep:
                stream.put(index, found)
        return _pair(fit, held), keep

    def _matrix(self, layer: Layer, name: str) -> Floats:
        """A matrix as [out, in], also where transformers keeps it transposed."""
        value = self.model.weights[f"{layer.name}.{_key(layer, name)}"]
        transposed = type(layer.matrices()[name]).__name__ == "Conv1D"
        return np.ascontiguousarray((value.T if transposed else value).numpy())

    def _of_batch(self, index: int, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The weights of a batch's tokens for those of the matrices that have any."""
        batch = self._batches[index]
        rows = slice(batch.first, batch.first + len(batch.documents))
        return {name: torch.from_numpy(self._weights[name][rows]) for name in names if name in self._weights}

    def _head(self, stream: Stream, visitor: Visitor) -> None:
        name = self.model.head
        if name is None or visitor.known([name]) is not None:
            return
        fit, held = (Collector({}, visitor.moments) for _ in range(2))
        for index, batch in enumerate(self._batches):
            found = self.model.head_input(batch, stream.finals(index))
            if found is not None:
                weight = self._of_batch(index, [name]).get(name)
                (held if index in self._held else fit).add(name, found, weight)
        visitor.solve({}, _pair(fit, held))

    @contextmanager
    def _progress(self) -> Iterator[Any]:
        total = sum(_size(layer) for stack in self.model.stacks for layer in stack)
        with self._report.progress("calibrating", total) as advance:
            yield advance


def visitor_keeps(visitor: Visitor) -> bool:
    """Whether a visitor never changes a weight, so that each layer runs once only."""
    return bool(getattr(visitor, "only_looks", False))


def _pair(fit: Collector, held: Collector) -> dict[str, Seen]:
    first, second = fit.statistics(), held.statistics()
    return {name: Seen(found, second.get(name, found)) for name, found in first.items()}


def _size(layer: Layer) -> int:
    return sum(4 * parameter.numel() for parameter in layer.module.parameters())


def _key(layer: Layer, name: str) -> str:
    return next(key for key, tensor in layer.tensors.items() if tensor == name)


def _replace(layer: Layer, parameters: Parameters, new: Mapping[str, Floats]) -> None:
    """Put new matrices into the parameters."""
    for name, weight in new.items():
        value = torch.from_numpy(weight)
        transposed = type(layer.matrices()[name]).__name__ == "Conv1D"
        parameters[_key(layer, name)] = value.T.contiguous() if transposed else value
