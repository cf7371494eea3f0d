"""GGUF files for llama.cpp and what builds on it: one file, or shards."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InternalError
from gpt54_convert.exporters import _gguf_keys, _gguf_views
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.formats import gguf_layout
from gpt54_convert.formats.safetensors import Layout, Writer
from gpt54_convert.packing import ggml as packing
from gpt54_convert.quantize.grids import FLOAT, GRIDS, Grid
from gpt54_convert.quantize.qtensor import QTensor

NAME = "gguf"
DESCRIPTION = "a GGUF file for llama.cpp, ollama and the like"

Stored = tuple[LazyTensor, str]


def can_hold(grid: Grid) -> bool:
    """True for float grids and for those that ggml has a type for."""
    return grid.kind == FLOAT or packing.ggml_type(grid) is not None


def refuses(role: str, tensor: LazyTensor, grid: Grid, checkpoint: Checkpoint | None = None) -> str | None:
    """Why a weight of that role cannot stand on `grid` in a GGUF file; None where it can."""
    if grid.kind == FLOAT:
        return None
    if not can_hold(grid):
        return "GGUF has no such type"
    if len(tensor.shape) != 2:
        return "only matrices can be quantized"
    if _gguf_views.FLOAT32_ROLES.fullmatch(role):
        return "llama.cpp wants these in float32"
    return None


def float_grid(role: str, tensor: LazyTensor, grid: Grid) -> Grid:
    """float32 for vectors and for what llama.cpp's graphs take in float32 only."""
    small = len(tensor.shape) < 2 or _gguf_views.FLOAT32_ROLES.fullmatch(role)
    return GRIDS["float32"] if small else grid


def leaves_out(checkpoint: Checkpoint) -> list[str]:
    """Tensors that llama.cpp computes without, as the architecture's table says."""
    return _gguf_views.dropped(checkpoint, _gguf_views.architecture_of(checkpoint))


def open_sink(checkpoint: Checkpoint, folder: Path, options: SinkOptions) -> GgufSink:
    """Lay the file or shards out; nothing is written before the first `put`.

    Raises UnsupportedError for an architecture that is not described, or that llama.cpp would compute
    differently.
    """
    return GgufSink(checkpoint, folder, options)


@dataclass(frozen=True)
class _Shard:
    name: str
    layout: Layout


class GgufSink:
    """One GGUF artifact being written; see `exporters._sink.Sink`.

    notes: what llama.cpp will not reproduce and what was left out, each a sentence for people.
    """

    def __init__(self, checkpoint: Checkpoint, folder: Path, options: SinkOptions) -> None:
        architecture = _gguf_views.architecture_of(checkpoint)
        stored = _gguf_views.stored(checkpoint, architecture)
        keys = _gguf_keys.file_keys(checkpoint, architecture, options, stored)
        keys += _gguf_views.unscaled_keys(checkpoint, architecture)
        stem = _gguf_keys.file_stem(checkpoint, options, stored)
        self._folder = folder
        self._views = [view for view, _ in stored]
        self._types = {view.name: kind for view, kind in stored}
        self._shards = _lay_out(stem, keys, stored, options.shard_bytes)
        self._home = {name: shard for shard in self._shards for name in shard.layout.names}
        self._writers: dict[str, Writer] = {}
        self._lock = threading.Lock()
        self.size_bytes = sum(shard.layout.size_bytes for shard in self._shards)
        self.notes = list(architecture.caveats(checkpoint.config))

    def views(self) -> list[LazyTensor]:
        """Every tensor under its GGUF name and in its row order, in file order."""
        return list(self._views)

    def put(self, name: str, start: int, stop: int, rows: QTensor | NDArray[Any]) -> None:
        """Write rows [start, stop) of view `name`: codes where it has a grid, else its storage type."""
        if isinstance(rows, QTensor):
            kind = packing.ggml_type(rows.grid)
            if kind is None or kind.upper() != self._types[name]:
                raise InternalError(f"tensor {name} was laid out as {self._types[name]}, but codes arrived")
            rows = packing.pack(rows)
        self._open(self._home[name]).put(name, start, rows)

    def close(self) -> list[Path]:
        """Finish all files; returns them, largest first."""
        for shard in self._shards:
            self._open(shard)
        for writer in self._writers.values():
            writer.close()
        shards = sorted(self._shards, key=lambda shard: (-shard.layout.size_bytes, shard.name))
        return [self._folder / shard.name for shard in shards]

    def _open(self, shard: _Shard) -> Writer:
        with self._lock:
            if shard.name not in self._writers:
                self._writers[shard.name] = Writer(self._folder / shard.name, shard.layout)
            return self._writers[shard.name]


def _lay_out(
    stem: str, keys: Sequence[gguf_layout.Key], stored: Sequence[Stored], shard_bytes: int | None
) -> list[_Shard]:
    """One file, or as many as it takes to keep each below `shard_bytes` of tensors.

    The first shard holds all metadata, as llama.cpp's own splitter leaves it.
    """
    parts = _cut(stored, shard_bytes)
    if len(parts) == 1:
        return [_Shard(f"{stem}.gguf", gguf_layout.plan(keys, stored))]
    shards = []
    for number, part in enumerate(parts):
        split: list[gguf_layout.Key] = [
            ("split.no", "UINT16", number),
            ("split.count", "UINT16", len(parts)),
            ("split.tensors.count", "INT32", len(stored)),
        ]
        name = f"{stem}-{number + 1:05d}-of-{len(parts):05d}.gguf"
        layout = gguf_layout.plan([*(keys if number == 0 else ()), *split], part)
        shards.append(_Shard(name, layout))
    return shards


def _cut(stored: Iterable[Stored], shard_bytes: int | None) -> list[list[Stored]]:
    parts: list[list[Stored]] = [[]]
    used = 0
    for view, kind in stored:
        size = gguf_layout.size_bytes(view, kind)
        if shard_bytes is not None and parts[-1] and used + size > shard_bytes:
            parts.append([])
            used = 0
        parts[-1].append((view, kind))
        used += size
    return parts
