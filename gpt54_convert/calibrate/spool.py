"""Rounded tensors on disk while mixes are measured: each is rounded once, however often it is read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gpt54_convert.calibrate.store import Store
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.quantize.grids import Grid


class Spool:
    """Codes of the tensors of one mix; those that the next one has too are not made again."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gpt54-rounded-")
        self._store = Store(Path(self._folder.name))
        self._kept: set[tuple[str, Grid]] = set()

    def begin(self, wanted: Iterable[tuple[str, Grid]]) -> None:
        """Another mix, of these tensors on these grids: forget all others."""
        new = set(wanted)
        for name, grid in self._kept - new:
            self._store.drop(name, grid)
        self._kept = new

    def kept(self, rounded: LazyTensor, grid: Grid) -> LazyTensor:
        """A tensor of this mix whose codes are made when first read, all at once, and read from then on.

        Raises OutputError where the disk is full.
        """
        made, name = rounded.read_codes, rounded.name
        assert made is not None

        def read(start: int, stop: int) -> NDArray[Any]:
            if not self._store.has(name, grid):
                parts = (made(*rows) for rows in rounded.chunks())
                self._store.save(name, parts, rounded.row_count)  # type: ignore[arg-type]
            return self._store.rows(name, grid, start, stop).dequantize()

        return replace(rounded, read=read, read_codes=None)

    def close(self) -> None:
        """Remove everything."""
        self._folder.cleanup()
