"""Quantizing as a view: a tensor on a grid reads its rows' codes when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core import discover, views
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, UsageError
from gpt54_convert.quantize.error import ErrorTally
from gpt54_convert.quantize.grids import FLOAT, Grid
from gpt54_convert.quantize.qtensor import QTensor
from gpt54_convert.quantize.statistics import Statistics


class Solve(Protocol):
    """Codes of `weight` [rows, columns] on a grid; statistics are those of its inputs, where known."""

    def __call__(
        self, weight: NDArray[np.float32], grid: Grid, statistics: Statistics | None = None, /
    ) -> QTensor: ...


Found = Callable[[int, int], QTensor | None]
# Two names of the same numbers: the integer grid, and ggml's name for it.
_SAME = {"q4_0": "int4-g32", "q5_0": "int5-g32", "q8_0": "int8-g32"}
SOLVERS = "gpt54_convert.quantize.solvers"


def solver(name: str) -> Solve:
    """The solver in the file `name`.  Raises UsageError for one that is not there."""
    return cast(Solve, _module(name).solve)


def candidates(name: str) -> Callable[..., Mapping[str, QTensor]] | None:
    """For a method that tries several ways on a matrix: all of them, by name, from which the walk chooses."""
    return cast("Callable[..., Mapping[str, QTensor]] | None", getattr(_module(name), "candidates", None))


def needs(name: str) -> str:
    """What a solver must be given: `nothing`, mean `squares` of the inputs, or their `moments`."""
    return cast(str, _module(name).NEEDS)


def then(name: str) -> str:
    """What is to be done with a whole model once its tensors are solved: `tune`, or nothing (empty)."""
    return cast(str, getattr(_module(name), "THEN", ""))


def _module(name: str) -> ModuleType:
    if name not in discover.names(SOLVERS):
        raise UsageError(f"unknown method {name!r}: use one of {', '.join(discover.names(SOLVERS))}")
    return discover.load(SOLVERS, name)


def same_grid(name: str | None, grid: Grid) -> bool:
    """Whether a source's codes on the grid `name` are those of `grid`, perhaps under another name."""
    return name is not None and _SAME.get(name, name) == _SAME.get(grid.name, grid.name)


def on_grid(
    tensor: LazyTensor, grid: Grid, solve: Solve, tally: ErrorTally, found: Found | None = None
) -> LazyTensor:
    """`tensor` stored on `grid`: a float grid casts, any other solves chunk by chunk as rows are read.

    found: codes of rows [start, stop) that are there already, or None for rows that `solve` is to solve.
    A source that already holds codes of this very grid hands them on untouched.
    """
    if grid.kind == FLOAT:
        return _cast(tensor, grid)
    if same_grid(tensor.grid, grid):
        return _passed_on(tensor, grid)

    def read_codes(start: int, stop: int) -> QTensor:
        weight = tensor.float_rows(start, stop)
        try:
            q = (found(start, stop) if found else None) or solve(weight, grid)
        except InputError as error:
            raise InputError(f"tensor {tensor.name}, rows from {start}: {error}") from None
        tally.add(start, weight, q)
        return q

    def read(start: int, stop: int) -> NDArray[Any]:
        return read_codes(start, stop).dequantize()

    return replace(tensor, dtype="float32", grid=grid.name, read=read, read_codes=read_codes)


def _passed_on(tensor: LazyTensor, grid: Grid) -> LazyTensor:
    source = tensor.read_codes
    if source is None:
        return tensor
    return replace(
        tensor,
        grid=grid.name,
        read_codes=lambda start, stop: replace(cast(QTensor, source(start, stop)), grid=grid),
    )


def _cast(tensor: LazyTensor, grid: Grid) -> LazyTensor:
    """A float cast that refuses to turn finite weights into infinities."""
    stored = views.cast(tensor, grid.name)
    if grid.name != "float16" or stored is tensor:
        return stored

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = stored.read(start, stop)
        if not np.isfinite(rows).all():
            raise InputError(
                f"tensor {tensor.name} has values beyond float16's 65504 (or not finite) in rows "
                f"{start}–{stop}; use --dtype bfloat16 or keep that role in float32"
            )
        return rows

    return replace(stored, read=read)
