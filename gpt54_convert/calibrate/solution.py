"""What a walk is to find for one mix of grids, and what it found: light, so that a plan can hold it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpt54_convert.calibrate.store import Store
from gpt54_convert.quantize.encode import Found
from gpt54_convert.quantize.grids import FLOAT, Grid
from gpt54_convert.quantize.qtensor import QTensor

_OUTSIDE = ("embed", "head")


@dataclass
class Solution:
    """Codes for the tensors of containers that agree on the grid of every tensor within layers.

    inner: the grids of tensors within layers, by name.  outer: those of embeddings and heads, on which
    containers may differ.  store: the codes, once the walk is done.
    """

    inner: Mapping[str, Grid]
    outer: dict[str, set[Grid]] = field(default_factory=dict)
    store: Store | None = None

    @property
    def key(self) -> str:
        """Names the walk."""
        text = "\n".join(f"{name} {grid.name}" for name, grid in sorted(self.inner.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def codes(self, name: str, grid: Grid) -> Found:
        """Where a tensor's codes will be found: None for rows of a tensor that the walk never met."""

        def found(start: int, stop: int) -> QTensor | None:
            if self.store is None or not self.store.has(name, grid):
                return None
            return self.store.rows(name, grid, start, stop)

        return found


class Solutions:
    """The walks that a job needs: one for each mix of grids within layers."""

    def __init__(self) -> None:
        self.all: dict[str, Solution] = {}

    def get(self, grids: Mapping[str, Grid], roles: Mapping[str, str]) -> Solution:
        """The solution for a container with these grids (by tensor, as are `roles`)."""
        coded = {name: grid for name, grid in grids.items() if grid.kind != FLOAT}
        outside = {name for name in coded if roles[name].startswith(_OUTSIDE)}
        wanted = Solution({name: grid for name, grid in coded.items() if name not in outside})
        found = self.all.setdefault(wanted.key, wanted)
        for name in outside:
            found.outer.setdefault(name, set()).add(coded[name])
        return found
