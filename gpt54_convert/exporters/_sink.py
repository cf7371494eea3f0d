"""What a container's exporter is to the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.quantize.grids import Grid
from gpt54_convert.quantize.qtensor import QTensor


class Sink(Protocol):
    """One artifact being written.  Its whole layout follows from the declared tensors before any is read.

    A tensor of the checkpoint that has a `grid` is stored on it; any other is stored in its dtype.
    """

    notes: Sequence[str]
    """What the container cannot carry, or its runtimes will not reproduce; each a sentence for people.

    `close` may add to it what only the finished files could show.
    """

    @property
    def size_bytes(self) -> int:
        """Exact bytes of all files that `close` will leave, or has left if it had to change them."""
        ...

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


@dataclass(frozen=True)
class SinkOptions:
    """What an exporter is told besides the checkpoint.

    name: the model's name, for metadata and file names.  label: the scheme's name (`int4`, `q4_k_m`).
    pre: GGUF's `tokenizer.ggml.pre`, given by the user.  shard_bytes: the largest file, or None.
    layout: how ONNX files are called: `optimum` or `transformers.js`.
    activations: the grid of those weights whose inputs are rounded to 8 bits too, or nothing.
    ranges: tensor -> least and greatest value that enters it, where inputs are rounded by fixed scales, which
    serve the tensors that are named; any numbers do for a plan.  None where all are scaled as they come.
    """

    name: str
    label: str
    pre: str | None = None
    shard_bytes: int | None = None
    layout: str = "optimum"
    activations: str = ""
    ranges: Mapping[str, tuple[float, float]] | None = None


class Exporter(Protocol):
    """The module of one container in `exporters/`; its file name is the container's name."""

    DESCRIPTION: str

    def refuses(
        self, role: str, tensor: LazyTensor, grid: Grid, checkpoint: Checkpoint | None = None
    ) -> str | None:
        """Why this container cannot store a weight of that role on that grid; None where it can.

        checkpoint: the model it is part of; without it, what depends on the model cannot be told.
        """
        ...

    def float_grid(self, role: str, tensor: LazyTensor, grid: Grid) -> Grid:
        """The float type that a weight kept as `grid` really gets here (llama.cpp wants norms in float32)."""
        ...

    def leaves_out(self, checkpoint: Checkpoint) -> Sequence[str]:
        """Tensors that this container has no place for and does without (BERT's pooler in GGUF)."""
        ...

    def open_sink(self, checkpoint: Checkpoint, folder: Path, options: SinkOptions) -> Sink:
        """Lay the artifact out; no file is touched before the first `put`.

        Raises UnsupportedError for a model that this container cannot hold.
        """
        ...
