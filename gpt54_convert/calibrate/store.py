"""Finished codes on disk: what an interrupted walk need not do again, and what containers are made of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.workspace import as_output_error
from gpt54_convert.quantize.grids import Grid
from gpt54_convert.quantize.qtensor import FIELDS, QTensor

_FIELDS = (*FIELDS[1:], FIELDS[0])  # codes come last and complete a tensor


class Store:
    """Quantized tensors by name and grid, in `folder`, each field a .npy file of [rows, …]."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str, grid: Grid) -> bool:
        """Whether this tensor is complete."""
        return self._path(name, grid, "codes").exists()

    def save(self, name: str, parts: Iterable[QTensor], rows: int) -> None:
        """Keep a whole tensor of `rows` rows, given by parts below each other.

        Raises OutputError where the disk is full.
        """
        files: dict[Path, BinaryIO] = {}  # by the name that each takes once all are whole
        try:
            with ExitStack() as stack:
                for part in parts:
                    for field in _FIELDS:
                        values = getattr(part, field)
                        if values is not None:
                            path = self._path(name, part.grid, field)
                            if path not in files:
                                files[path] = stack.enter_context(open(path.with_suffix(".part"), "wb"))
                                _start(files[path], values, rows)
                            files[path].write(np.ascontiguousarray(values).data)
            for path in files:
                os.replace(path.with_suffix(".part"), path)
        except OSError as error:
            raise as_output_error(error, self.folder) from error

    def drop(self, name: str, grid: Grid) -> None:
        """Forget a tensor, if it is there."""
        for field in reversed(_FIELDS):
            self._path(name, grid, field).unlink(missing_ok=True)

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

        return QTensor(grid, *(read(field) for field in FIELDS))  # type: ignore[arg-type]

    def _path(self, name: str, grid: Grid, field: str) -> Path:
        key = hashlib.sha256(f"{name}\n{grid.name}".encode()).hexdigest()[:24]
        return self.folder / f"{key}.{field}.npy"


def _start(file: BinaryIO, values: NDArray[np.generic], rows: int) -> None:
    """The header of a .npy file that goes on with the rows of `values`."""
    header = np.lib.format.header_data_from_array_1_0(values)
    np.lib.format.write_array_header_1_0(
        file, {**header, "shape": (rows, *values.shape[1:]), "fortran_order": False}
    )
