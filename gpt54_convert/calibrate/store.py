"""Finished codes on disk: what an interrupted walk need not do again, and what containers are made of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.workspace import as_output_error
from gpt54_convert.quantize.grids import Grid
from gpt54_convert.quantize.qtensor import QTensor

_FIELDS = ("scale", "offset", "super_scale", "super_offset", "codes")  # the last one completes a tensor


class Store:
    """Quantized tensors by name and grid, in `folder`, each field a .npy file of [rows, …]."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str, grid: Grid) -> bool:
        """Whether this tensor is complete."""
        return self._path(name, grid, "codes").exists()

    def save(self, name: str, q: QTensor) -> None:
        """Keep a whole tensor.  Raises OutputError where the disk is full."""
        try:
            for field in _FIELDS:
                values = getattr(q, field)
                if values is not None:
                    path = self._path(name, q.grid, field)
                    partial = path.with_suffix(".part")
                    with open(partial, "wb") as file:
                        np.save(file, np.ascontiguousarray(values))
                    os.replace(partial, path)
        except OSError as error:
            raise as_output_error(error, self.folder) from error

    def load(self, name: str, grid: Grid) -> QTensor:
        """A whole tensor."""
        return self.rows(name, grid, 0, None)

    def rows(self, name: str, grid: Grid, start: int, stop: int | None) -> QTensor:
        """Rows [start, stop) of a tensor."""

        def read(field: str) -> NDArray[np.generic] | None:
            path = self._path(name, grid, field)
            if not path.exists():
                return None
            return np.array(np.load(path, mmap_mode="r")[start:stop])

        return QTensor(grid, *(read(field) for field in ("codes", *_FIELDS[:-1])))  # type: ignore[arg-type]

    def _path(self, name: str, grid: Grid, field: str) -> Path:
        key = hashlib.sha256(f"{name}\n{grid.name}".encode()).hexdigest()[:24]
        return self.folder / f"{key}.{field}.npy"
