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
Unit = Sequence[LazyTensor]


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


def lay_out(
    views: Sequence[LazyTensor],
    homes: Mapping[str, str],
    shard_bytes: int | None,
    neighbours: Iterable[Sequence[str]] = (),
) -> Store:
    """The store of `views`, each in the file that `homes` names, cut after `shard_bytes`.

    neighbours: views of the same kinds of parts, which shall stand one behind the other: the codes of all of
    them without a gap, then their scales, and so on.
    """
    parts: dict[str, dict[str, Part]] = {}
    layouts: dict[str, Layout] = {}
    units = _units(views, neighbours)
    for home in dict.fromkeys(homes[view.name] for view in views):
        members = [unit for unit in units if homes[unit[0].name] == home]
        for number, shard in enumerate(_cut(members, shard_bytes)):
            name = f"{home}_{number}" if number else home  # the names that transformers.js looks for
            layouts[name] = _file(name, shard, parts)
    return Store({view.name: parts[view.name] for unit in units for view in unit}, layouts)


def _units(views: Sequence[LazyTensor], neighbours: Iterable[Sequence[str]]) -> list[Unit]:
    """What is laid out together, each where its first member stands; most views are alone."""
    by_name = {view.name: view for view in views}
    unit_of = {name: [by_name[each] for each in names] for names in neighbours for name in names}
    units = {id(unit): unit for unit in (unit_of.get(view.name) or [view] for view in views)}
    return list(units.values())


def _cut(units: Iterable[Unit], shard_bytes: int | None) -> list[list[Unit]]:
    shards: list[list[Unit]] = [[]]
    used = 0
    for unit in units:
        size = sum(part.size_bytes + _LARGE_ALIGN for view in unit for part in _arrays(view).values())
        if shard_bytes is not None and shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(unit)
        used += size
    return shards


def _file(name: str, units: Iterable[Unit], parts: dict[str, dict[str, Part]]) -> Layout:
    """Lay one file out, and enter its parts into `parts`."""
    position = 0
    offsets, row_bytes = {}, {}
    for unit in units:
        arrays = {view.name: _arrays(view) for view in unit}
        for kind in arrays[unit[0].name]:
            total = sum(each[kind].size_bytes for each in arrays.values())
            position += -position % (_LARGE_ALIGN if total >= _LARGE else _SMALL_ALIGN)
            for view in unit:
                array, key = arrays[view.name][kind], f"{view.name}/{kind}"
                offsets[key] = position
                row_bytes[key] = array.size_bytes // max(1, view.row_count)
                parts.setdefault(view.name, {})[kind] = replace(array, file=name, offset=position)
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
