"""What each tensor's rounding costs the model, on every grid it could take.

A cheap estimate for every tensor and grid (the error of sampled rows, weighted by the moments of
`calibrate.gradients`), and one true measurement for each role: the loss of the model with all tensors of that
role rounded.  The ratio of the two corrects the estimates of the role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.calibrate.gradients import Moments
from gpt54_convert.calibrate.loss import Loss
from gpt54_convert.calibrate.spool import Spool
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.report import Report
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.core.views import cast
from gpt54_convert.errors import MeasureError
from gpt54_convert.quantize.encode import Solve, on_grid, same_grid
from gpt54_convert.quantize.error import ErrorTally
from gpt54_convert.quantize.grids import FLOAT, Grid
from gpt54_convert.quantize.statistics import Statistics

_STRATA = 384  # rows looked at: estimates of SmolLM2's tensors are then 5 % (RMS) off those of all rows
_FLOOR = 1e-3  # of the mean: what no calibration text ever touched still counts a little


@dataclass(frozen=True)
class Measured:
    """One true measurement: the loss with all tensors of `role` on `grid`, and its estimate before."""

    role: str
    grid: str
    estimate: float
    loss: float

    @property
    def factor(self) -> float:
        return self.loss / self.estimate if self.estimate > 0 and self.loss > 0 else 1.0


@dataclass
class Sensitivity:
    """Estimates by (tensor, grid), asked for as they are needed, and their corrections by role.

    importance: whether scales are searched with the moments of the inputs as weights.
    """

    checkpoint: Checkpoint
    moments: Mapping[str, Moments]
    solve: Solve
    importance: bool
    roles: Mapping[str, str]
    measured: dict[str, Measured] = field(default_factory=dict)
    _spool: Spool = field(default_factory=Spool)
    _estimates: dict[tuple[str, str], float] = field(default_factory=dict)

    def loss(self, name: str, grid: Grid) -> float:
        """What putting tensor `name` on `grid` costs, in the unit of the measurements."""
        found = self.measured.get(self.roles[name])
        return self.estimate(name, grid) * (found.factor if found else 1.0)

    def estimate(self, name: str, grid: Grid) -> float:
        """The same before correction."""
        if (name, grid.name) not in self._estimates:
            self._fill(name, [grid])
        return self._estimates[name, grid.name]

    def prepare(self, candidates: Mapping[str, Sequence[Grid]], report: Report) -> None:
        """Estimate many at once: each tensor is read once for all its grids."""
        todo = {
            name: [grid for grid in grids if (name, grid.name) not in self._estimates]
            for name, grids in candidates.items()
        }
        total = sum(self.checkpoint.tensors[name].size * bool(grids) for name, grids in todo.items())
        with report.progress("rounding errors", total) as advance:
            for name, grids in todo.items():
                if grids:
                    self._fill(name, grids)
                    advance(self.checkpoint.tensors[name].size)

    def measure(self, loss: Loss, grids: Mapping[str, Grid], report: Report) -> None:
        """One true measurement for every role that has none; grids: the grid to measure each role on."""
        todo = [role for role in grids if role not in self.measured]
        with report.progress("sensitivity of roles", loss.token_count * len(todo)) as advance:
            for role in todo:
                names = [name for name, own in self.roles.items() if own == role]
                assigned = {name: grids[role] for name in names if grids[role].fits(self._columns(name))}
                found = loss.of(self.rounded(assigned))
                if not np.isfinite(found):
                    raise MeasureError(
                        f"the model answers with NaN or infinity once {role} stands on {grids[role].name}; "
                        f"keep that role in more bits with --keep {role}=float16"
                    )
                estimate = sum(self.estimate(name, grid) for name, grid in assigned.items())
                self.measured[role] = Measured(role, grids[role].name, estimate, found)
                advance(loss.token_count)

    def rounded(self, assigned: Mapping[str, Grid]) -> Checkpoint:
        """The model with some tensors on grids, the others as they are; it serves until the next is made."""
        tensors = dict(self.checkpoint.tensors)
        self._spool.begin(assigned.items())
        for name, grid in assigned.items():
            rounded = self._on_grid(tensors[name], grid)
            solved = grid.kind != FLOAT and not same_grid(tensors[name].grid, grid)
            tensors[name] = self._spool.kept(rounded, grid) if solved else rounded
        return self.checkpoint.with_tensors(tensors)

    def close(self) -> None:
        """Drop what waits on disk."""
        self._spool.close()

    def _columns(self, name: str) -> int:
        return self.checkpoint.tensors[name].columns

    def _on_grid(self, tensor: LazyTensor, grid: Grid) -> LazyTensor:
        if grid.kind == FLOAT:
            return cast(tensor, grid.name)
        return on_grid(tensor, grid, self._solver(tensor.name), ErrorTally())

    def _solver(self, name: str) -> Solve:
        found = self.moments.get(name)
        if not self.importance or found is None:
            return self.solve
        statistics = Statistics(_floored(found.inputs).astype(np.float32), 0)
        return lambda weight, grid, _=None: self.solve(weight, grid, statistics)

    def _fill(self, name: str, grids: Sequence[Grid]) -> None:
        tensor = self.checkpoint.tensors[name]
        found = self.moments.get(name)
        outputs = _floored(found.outputs) if found else np.ones(tensor.row_count)
        inputs = _floored(found.inputs) if found else np.ones(tensor.columns)
        rows, weights = _strata(outputs)
        sample = _read_rows(tensor, rows)
        sampled = LazyTensor(name, sample.shape, "float32", lambda start, stop: sample[start:stop])
        for grid in grids:
            stored = self._on_grid(sampled, grid).float_rows(0, len(rows))
            error = (sample - stored).astype(np.float64)
            self._estimates[name, grid.name] = 0.5 * float(weights @ (error**2 @ inputs))


def _floored(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values + (_FLOOR * float(values.mean()) or 1e-30)


def _strata(outputs: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Rows that stand for all, in order, and the summed weight of those that each stands for.

    Rows are sorted by weight and cut into strata of like size, of each of which the middle row is taken.
    """
    order = np.argsort(outputs, kind="stable")
    edges = np.linspace(0, len(order), min(_STRATA, len(order)) + 1).astype(np.intp)
    rows = order[(edges[:-1] + edges[1:]) // 2]
    weights = np.add.reduceat(outputs[order], edges[:-1])
    by_row = np.argsort(rows)
    return rows[by_row], weights[by_row]


def _read_rows(tensor: LazyTensor, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    parts = []
    for start, stop in tensor.chunks():
        wanted = rows[(rows >= start) & (rows < stop)]
        if len(wanted):
            parts.append(tensor.float_rows(start, stop)[wanted - start])
    return np.ascontiguousarray(np.concatenate(parts))
