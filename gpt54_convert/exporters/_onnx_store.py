"""Where the weights of ONNX graphs stand on disk: files of external data, known before anything is read.

Every tensor of the checkpoint is stored once, whatever number of graphs reads it, in its own row order, so
that rows can be written as they come.  A float is stored in its own type (the graph casts where it computes
in another); codes take two or three parts, see `packing.onnx`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpt54_convert.core.dtypes import itemsize
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.exporters._hf_folder import stored_grid
from gpt54_convert.formats.safetensors import Layout
from gpt54_convert.packing import onnx as packing

# ONNX Runtime maps large tensors into memory where they start at a multiple of the system's allocation
# granularity (64 KiB on Windows, 4 KiB elsewhere); what is small is read.
_LARGE, _LARGE_ALIGN, _SMALL_ALIGN = 1 << 20, 1 << 16, 64
CODES, SCALES, ZERO_POINTS, VALUES = "codes", "scales", "zero_points", "values"


@dataclass(frozen=True)
class Part:
    """One stored array: the file it is in, its first byte, its shape and dtype (names of core.dtypes)."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class Store:
    """The files of external data of one artifact.

    parts: view name -> its parts by kind (`values`, or `codes`, `scales` and `zero_points`).
    layouts: file name -> where each part, called `view/kind`, begins.
    """

    parts: Mapping[str, Mapping[str, Part]]
    layouts: Mapping[str, Layout]

    @property
    def size_bytes(self) -> int:
        return sum(layout.size_bytes for layout in self.layouts.values())


def lay_out(views: Sequence[LazyTensor], homes: Mapping[str, str], shard_bytes: int | None) -> Store:
    """The store of `views`, each in the file that `homes` names, cut after `shard_bytes`."""
    parts: dict[str, dict[str, Part]] = {}
    layouts: dict[str, Layout] = {}
    for home in dict.fromkeys(homes[view.name] for view in views):
        members = [view for view in views if homes[view.name] == home]
        for number, shard in enumerate(_cut(members, shard_bytes)):
            name = f"{home}_{number}" if number else home  # the names that transformers.js looks for
            layouts[name] = _file(name, shard, parts)
    return Store({view.name: parts[view.name] for view in views}, layouts)


def _cut(views: Iterable[LazyTensor], shard_bytes: int | None) -> list[list[LazyTensor]]:
    shards: list[list[LazyTensor]] = [[]]
    used = 0
    for view in views:
        size = sum(part.size_bytes + _LARGE_ALIGN for part in _arrays(view).values())
        if shard_bytes is not None and shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(view)
        used += size
    return shards


def _file(name: str, views: Iterable[LazyTensor], parts: dict[str, dict[str, Part]]) -> Layout:
    """Lay one file out, and enter its parts into `parts`."""
    position = 0
    offsets, row_bytes = {}, {}
    for view in views:
        parts[view.name] = {}
        for kind, array in _arrays(view).items():
            align = _LARGE_ALIGN if array.size_bytes >= _LARGE else _SMALL_ALIGN
            position += -position % align
            key = f"{view.name}/{kind}"
            offsets[key] = position
            row_bytes[key] = array.size_bytes // max(1, view.row_count)
            parts[view.name][kind] = replace(array, file=name, offset=position)
            position += array.size_bytes
    return Layout(tuple(offsets), b"", offsets, row_bytes, position)


def _arrays(view: LazyTensor) -> dict[str, Part]:
    """The arrays of one view, not yet placed."""
    if view.grid is None:
        return {VALUES: Part("", 0, view.shape, view.dtype)}
    target = stored_grid(view.grid)
    rows, columns = view.shape
    blocks = columns // packing.block_size(target, columns)
    found = {
        CODES: Part("", 0, (rows, packing.byte_count(columns, target.bits)), "uint8"),
        SCALES: Part("", 0, (rows, blocks), "float32"),
    }
    if not target.symmetric:
        found[ZERO_POINTS] = Part("", 0, (rows, packing.byte_count(blocks, target.bits)), "uint8")
    return found
