"""Hidden states of all batches, kept on disk between one layer and the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.workspace import as_output_error


class States:
    """Float32 arrays of one shape, one a batch, in a file that grows with the first writing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shape: tuple[int, ...] = ()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    def write(self, index: int, values: NDArray[np.float32]) -> None:
        """Keep the array of batch `index`.  Raises OutputError where the disk is full."""
        self._shape = values.shape
        try:
            with open(self._path, "r+b") as file:
                file.seek(index * values.nbytes)
                file.write(np.ascontiguousarray(values, np.float32).data)
        except OSError as error:
            raise as_output_error(error, self._path.parent) from error

    def read(self, index: int) -> NDArray[np.float32]:
        """The array of batch `index`."""
        count = int(np.prod(self._shape))
        found = np.fromfile(self._path, np.float32, count, offset=4 * index * count)
        return found.reshape(self._shape)
