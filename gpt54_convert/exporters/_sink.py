"""What a container's exporter is to the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.quantize.qtensor import QTensor


class Sink(Protocol):
    """One artifact being written.  Its whole layout follows from the declared tensors before any is read.

    A tensor of the checkpoint that has a `grid` is stored on it; any other is stored in its dtype.
    """

    size_bytes: int
    """Exact bytes of all files that `close` will leave."""

    def views(self) -> list[LazyTensor]:
        """Every tensor as this container stores it (name, row order, orientation), in file order."""
        ...

    def put(self, name: str, start: int, stop: int, rows: QTensor | NDArray[Any]) -> None:
        """Write rows [start, stop) of the view `name`: codes for a view with a grid, else its storage type.

        Called from several threads and in any order.  Raises OutputError where the disk is full.
        """
        ...

    def close(self) -> list[Path]:
        """Finish all files in the folder it was opened on, and return them, largest part first."""
        ...
