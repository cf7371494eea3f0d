"""Drive a sink as the pipeline does, but in one thread: for tests of exporters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.quantize.assign import place
from gpt54_convert.quantize.encode import on_grid
from gpt54_convert.quantize.error import ErrorTally
from gpt54_convert.quantize.grids import grid
from gpt54_convert.quantize.solvers import rtn


def pump(sink: Any, chunk_bytes: int = 4096) -> list[Path]:
    """Write every row of every view, in small chunks, and close the sink."""
    for view in sink.views():
        for start, stop in view.chunks(chunk_bytes):
            rows = view.read_codes(start, stop) if view.grid else view.rows(start, stop)
            sink.put(view.name, start, stop, rows)
    return sink.close()


def export(exporter: Any, checkpoint: Checkpoint, folder: Path, shard_bytes: int | None = None) -> Path:
    """The artifact of `checkpoint` in `folder`, which is made; its size is what the sink promised."""
    folder.mkdir(parents=True)
    sink = exporter.open_sink(checkpoint, folder, SinkOptions("tiny", "test", shard_bytes=shard_bytes))
    assert not list(folder.iterdir()), "nothing may be written before the first put"
    pump(sink)
    assert sum(path.stat().st_size for path in folder.iterdir()) == sink.size_bytes
    return folder


def quantized(exporter: Any, checkpoint: Checkpoint, name: str, head: str | None = None) -> Checkpoint:
    """`checkpoint` with every matrix on grid `name` that the container takes, the head on grid `head`."""
    tensors = {}
    for key, tensor in checkpoint.tensors.items():
        role = place(checkpoint, key).role
        target = grid(head if head and role == "head" else name)
        fits = len(tensor.shape) == 2 and target.fits(tensor.columns) and not role.endswith("rel_bias")
        if fits and exporter.refuses(role, tensor, target, checkpoint) is None:
            tensors[key] = on_grid(tensor, target, rtn.solve, ErrorTally())
        else:
            tensors[key] = tensor
    return checkpoint.with_tensors(tensors)
