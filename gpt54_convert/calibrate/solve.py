"""Solve every tensor of a job on a walk through the model, and keep the codes in the workspace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt54_convert.calibrate import text as texts
from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.calibrate.solution import Solution
from gpt54_convert.calibrate.store import Store
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.core.workspace import as_output_error
from gpt54_convert.errors import InputError, MeasureError, UnsupportedError
from gpt54_convert.quantize import finite
from gpt54_convert.quantize.encode import candidates, needs, solver, then
from gpt54_convert.quantize.grids import Grid
from gpt54_convert.quantize.qtensor import QTensor
from gpt54_convert.quantize.statistics import Floats, Statistics

if TYPE_CHECKING:  # torch
    from gpt54_convert.calibrate.walk import Seen
    from gpt54_convert.forward.batch import Batch

_HEAD_BYTES = 64 << 20  # float32 rows of a head that are solved together


def solve(
    solutions: Iterable[Solution],
    checkpoint: Checkpoint,
    method: str,
    options: Calibration,
    folder: Path,
    report: Report,
    threads: int = 0,
) -> dict[str, Any]:
    """Fill the solutions' stores; what a store in `folder` holds already is not solved again.

    Answers what it was calibrated on, for the manifest.
    Raises UnsupportedError without torch, InputError and MeasureError for text that cannot be used.
    """
    try:
        from gpt54_convert.calibrate.walk import Walk
    except ImportError as error:
        raise UnsupportedError(
            f"--method {method} runs the model on text, and {error.name} is not installed; "
            "pip install 'gpt54-convert[torch]', or take --method search"
        ) from error
    text = texts.read(options)
    documents = texts.documents(text, checkpoint, options)
    batches = texts.batches(documents)
    try:
        weights = _token_weights(checkpoint, batches, method, folder, report, threads)
        for solution in solutions:
            solution.store = Store(folder / f"codes-{solution.key}")
            visitor = _Solver(solution, solution.store, checkpoint, method, report)
            states = folder / f"walk-{solution.key}"
            Walk(checkpoint, batches, states, report, threads, weights=weights).run(visitor)
            if then(method) == "tune":
                from gpt54_convert.calibrate.tune import tune

                tune(solution, solution.store, checkpoint, batches, report, threads)
    except (InputError, MeasureError):
        _refuse_weights(checkpoint)  # rather than what came of them further on
        raise
    return {
        "text_sha256": texts.digest(text),
        "documents": sum(len(batch.documents) for batch in batches),
        "tokens": sum(len(document.tokens) for batch in batches for document in batch.documents),
    }


def _refuse_weights(checkpoint: Checkpoint) -> None:
    """Raise InputError for the first weight that is not finite, if any."""
    for name, tensor in checkpoint.tensors.items():
        for start, stop in tensor.chunks():
            try:
                finite.refuse(tensor.float_rows(start, stop).reshape(stop - start, -1))
            except InputError as error:
                raise InputError(f"tensor {name}, rows from {start}: {error}") from None


def _token_weights(
    checkpoint: Checkpoint, batches: Sequence[Batch], method: str, folder: Path, report: Report, threads: int
) -> dict[str, Floats]:
    """How much each token counts for each matrix, where the method's objective is the output error.

    Kept in `folder` for the next run, whose codes are to be the same.
    """
    if needs(method) != "moments":
        return {}
    from gpt54_convert.calibrate import gradients

    path = folder / "token-weights.npz"
    if not path.exists():
        documents = [document for batch in batches for document in batch.documents]
        found = gradients.token_weights(checkpoint, documents, report, threads)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial := folder / "token-weights.partial", "wb") as file:
                np.savez(file, **found)  # type: ignore[arg-type]
            partial.rename(path)
        except OSError as error:
            raise as_output_error(error, folder) from error
    with np.load(path) as kept:
        return {name: kept[name] for name in kept.files}


class _Solver:
    """Visits layers and puts their matrices on their grids."""

    def __init__(
        self, solution: Solution, store: Store, checkpoint: Checkpoint, method: str, report: Report
    ) -> None:
        self._solution, self._store, self._report = solution, store, report
        self._checkpoint = checkpoint
        one = solver(method)
        self._ways = candidates(method) or (lambda *matrix: {method: one(*matrix)})
        # On what it is given, gptq has compared itself with the plain ways already.
        self._guarded = candidates(method) is None and needs(method) == "moments"
        self.moments = True  # those of held-out batches judge what was found, whatever the method

    def known(self, names: Sequence[str]) -> Mapping[str, Floats] | None:
        """The weights of a layer whose codes are all there."""
        wanted = [(name, grid) for name in names for grid in self._grids(name)]
        if not wanted or not all(self._store.has(name, grid) for name, grid in wanted):
            return None
        inner = [(name, grid) for name, grid in wanted if name in self._solution.inner]
        return {name: self._store.load(name, grid).dequantize() for name, grid in inner}

    def solve(self, weights: Mapping[str, Floats], seen: Mapping[str, Seen]) -> None:
        """Solve what can be solved, and keep it."""
        for name, met in seen.items():
            for grid in self._grids(name):
                tensor = self._checkpoint.tensors[name]
                parts = [weights[name]] if name in weights else _parts(tensor)
                solved = (self._best(name, part, grid, met) for part in parts)
                self._store.save(name, solved, tensor.row_count)

    def _grids(self, name: str) -> list[Grid]:
        if name in self._solution.inner:
            return [self._solution.inner[name]]
        return sorted(self._solution.outer.get(name, ()), key=lambda grid: grid.name)

    def _best(self, name: str, weight: Floats, grid: Grid, met: Seen) -> QTensor:
        """The method's codes, unless plain ways come closer to the outputs on text that it did not see."""
        try:
            found: dict[str, QTensor] = dict(self._ways(weight, grid, met.fit))
            if self._guarded and met.held is met.fit:
                return next(iter(found.values()))
            found["weighted search"] = solver("search")(weight, grid, met.fit)
            found["rounding"] = solver("rtn")(weight, grid, None)
        except InputError as error:
            raise InputError(f"tensor {name}: {error}") from None
        best = min(found, key=lambda way: output_error(found[way], weight, met.held))
        if best != next(iter(found)):
            self._report.detail(f"{name}: {best} was better")
        return found[best]


def output_error(q: QTensor, weight: Floats, statistics: Statistics) -> float:
    """The mean squared error of the outputs, over tokens as the statistics weigh them."""
    if statistics.moment is None:
        raise UnsupportedError("output errors need the second moments of the inputs")
    error = q.dequantize() - weight
    return float(np.einsum("ij,ij->", error @ statistics.moment, error, dtype=np.float64))


def _parts(tensor: LazyTensor) -> Iterator[Floats]:
    for start, stop in tensor.chunks(_HEAD_BYTES):
        yield tensor.float_rows(start, stop)
