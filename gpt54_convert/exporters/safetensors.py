"""A Hugging Face model folder of safetensors: plain floats, or integer grids as compressed-tensors.

Either kind is opened by a plain `from_pretrained`.  The layout of quantized weights is that of
compressed-tensors (vllm-project/compressed-tensors), read by transformers and vLLM: `pack-quantized`, or
`int-quantized` where activations are rounded too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert import archs
from gpt54_convert.archs import Match
from gpt54_convert.core import views
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.dtypes import STORAGE
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InternalError, OutputError, UnsupportedError
from gpt54_convert.exporters import _hf_folder
from gpt54_convert.exporters._sink import SinkOptions
from gpt54_convert.formats import safetensors
from gpt54_convert.packing import compressed_tensors as packing
from gpt54_convert.quantize.grids import FLOAT, INT, Grid
from gpt54_convert.quantize.qtensor import QTensor

NAME = "safetensors"
DESCRIPTION = "a Hugging Face folder; integer grids as compressed-tensors"
SHARD_BYTES = 5_000_000_000  # as transformers cuts them
# vLLM makes one matrix of these and refuses parts on different grids.
FUSED = (("attn.q", "attn.k", "attn.v"), ("ffn.gate", "ffn.up"))


def can_hold(target: Grid) -> bool:
    """True for float grids and for symmetric integer grids of 4 or 8 bits."""
    target = _hf_folder.stored_grid(target.name)
    return target.kind == FLOAT or (target.kind == INT and target.bits in (4, 8) and target.symmetric)


def refuses(role: str, tensor: LazyTensor, grid: Grid, checkpoint: Checkpoint | None = None) -> str | None:
    """Why a weight of that role cannot stand on `grid` in this container; None where it can.

    checkpoint: the model it is part of; without it, what depends on the model cannot be told.
    """
    if grid.kind == FLOAT:
        return None
    rules = (
        (not can_hold(grid), "compressed-tensors takes symmetric integer grids of 4 and 8 bits alone"),
        (len(tensor.shape) != 2, "only matrices can be packed"),
        (not tensor.name.endswith(".weight"), "only a module's `weight` can be packed"),
        (tensor.columns * grid.bits % 32, f"rows of {tensor.columns} codes do not fill 32-bit words"),
        (
            _is_embedding(role, tensor.name),
            "transformers reads an embedding (or a head tied to it) as floats",
        ),
        (_is_conv1d(tensor.name), "transformers cannot read GPT-2's Conv1D layers from compressed-tensors"),
        (
            role == "head" and checkpoint is not None and _hf_folder.one_grid_only(checkpoint.config),
            "transformers reads a T5 with one grid only, and the head deserves more bits",
        ),
    )
    return next((reason for applies, reason in rules if applies), None)


def _roles(name: str) -> list[Match]:
    """What any described architecture takes a tensor of that name for."""
    found = (archs.by_name(key).match(name) for key in archs.names())
    return [match for match in found if match is not None]


def _is_embedding(role: str, name: str) -> bool:
    roles = {match.role for match in _roles(name)} | {role}
    return any(each.startswith("embed") or each.endswith("rel_bias") for each in roles)


def _is_conv1d(name: str) -> bool:
    return any(match.is_turned for match in _roles(name))


def float_grid(role: str, tensor: LazyTensor, grid: Grid) -> Grid:
    """Any float type is stored as it is."""
    return grid


def leaves_out(checkpoint: Checkpoint) -> list[str]:
    """Nothing: this container has a place for every tensor."""
    return []


def open_sink(checkpoint: Checkpoint, folder: Path, options: SinkOptions) -> FolderSink:
    """Lay out the folder; nothing is written before the first `put`.

    Raises UnsupportedError where transformers could not read the result.
    """
    return FolderSink(checkpoint, folder, options.shard_bytes or SHARD_BYTES, options.activations)


@dataclass(frozen=True)
class _Shard:
    name: str
    layout: safetensors.Layout


class FolderSink:
    """One model folder being written; see `exporters._sink.Sink`."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, shard_bytes: int, activations: str = "") -> None:
        self._folder = folder
        self._views = [_as_stored(checkpoint, tensor) for tensor in checkpoint.tensors.values()]
        # A T5 is restored in the scales' own type while loading: float16 would round the products.
        scale = "float32" if _hf_folder.one_grid_only(checkpoint.config) else "float16"
        self._parts = {
            view.name: _parts(view, scale, view.grid is not None and view.grid == activations)
            for view in self._views
        }
        self._shards = _cut(self._parts, shard_bytes)
        self._home = {name: shard for shard in self._shards for name in shard.layout.names}
        self._writers: dict[str, safetensors.Writer] = {}
        self._lock = threading.Lock()
        self._side = _hf_folder.side_files(checkpoint, self._views, activations)
        if len(self._shards) > 1:
            weight_map = {name: shard.name for name, shard in self._home.items()}
            total = sum(part.size_bytes for parts in self._parts.values() for part in parts)
            self._side["model.safetensors.index.json"] = _hf_folder.index(weight_map, total)
        weights = sum(shard.layout.size_bytes for shard in self._shards)
        self.notes: list[str] = []
        self.size_bytes = weights + sum(map(len, self._side.values()))

    def views(self) -> list[LazyTensor]:
        """Every tensor under its name in transformers, in the order of the shards."""
        return list(self._views)

    def put(self, name: str, start: int, stop: int, rows: QTensor | NDArray[Any]) -> None:
        """Write rows [start, stop) of view `name`: codes where it has a grid, else its storage type."""
        if not isinstance(rows, QTensor):
            self._writer(name).put(name, start, rows)
            return
        if len(self._parts[name]) == 1:
            raise InternalError(f"tensor {name} was laid out as floats, but codes arrived")
        stem = name.removesuffix("weight")
        layout = packing.pack_bytes if self._parts[name][0].name == name else packing.pack
        packed = layout(replace(rows, grid=_hf_folder.stored_grid(rows.grid.name)))
        for part in self._parts[name][:2]:
            content = packed[part.name.removeprefix(stem)].astype(STORAGE[part.dtype], copy=False)
            self._writer(part.name).put(part.name, start, content)

    def close(self) -> list[Path]:
        """Finish all files; returns the weights' files first, largest first."""
        for shard in self._shards:
            self._open(shard)
        for parts in self._parts.values():
            for part in parts[2:]:  # weight_shape, known from the declaration
                self._writer(part.name).put(part.name, 0, part.read(0, 2))
        for writer in self._writers.values():
            writer.close()
        for name, content in self._side.items():
            _write_file(self._folder / name, content)
        shards = sorted(self._shards, key=lambda shard: (-shard.layout.size_bytes, shard.name))
        return [self._folder / shard.name for shard in shards] + [self._folder / name for name in self._side]

    def _writer(self, name: str) -> safetensors.Writer:
        return self._open(self._home[name])

    def _open(self, shard: _Shard) -> safetensors.Writer:
        with self._lock:
            if shard.name not in self._writers:
                self._writers[shard.name] = safetensors.Writer(self._folder / shard.name, shard.layout)
            return self._writers[shard.name]


def _as_stored(checkpoint: Checkpoint, tensor: LazyTensor) -> LazyTensor:
    """The tensor by transformers' name, in its orientation.  Raises UnsupportedError for an unfit grid."""
    name = _hf_folder.stored_name(checkpoint, tensor.name)
    if tensor.grid is None:
        architecture = archs.by_name(checkpoint.architecture) if checkpoint.architecture else None
        match = architecture.match(tensor.name) if architecture else None
        turned = match is not None and match.is_turned
        return (views.transposed(tensor) if turned and len(tensor.shape) == 2 else tensor).renamed(name)
    target = _hf_folder.stored_grid(tensor.grid)
    problem = refuses("", tensor, target)
    if problem is not None:
        raise UnsupportedError(f"tensor {name} cannot be stored as {target.name}: {problem}")
    return tensor.renamed(name)


def _parts(view: LazyTensor, scale_dtype: str, is_bytes: bool) -> list[LazyTensor]:
    """The tensors that stand in the file for one view; `is_bytes`: one signed byte a code, none packed."""
    if view.grid is None:
        return [view]
    target = _hf_folder.stored_grid(view.grid)
    rows, columns = view.shape
    groups = columns // target.group if target.group else 1
    stem = view.name.removesuffix("weight")
    if is_bytes:
        return [
            LazyTensor(view.name, (rows, columns), "int8", _unreadable),
            LazyTensor(stem + "weight_scale", (rows, groups), "float32", _unreadable),
        ]
    shape = np.array([rows, columns], np.int64)
    return [
        LazyTensor(stem + "weight_packed", (rows, columns * target.bits // 32), "int32", _unreadable),
        LazyTensor(stem + "weight_scale", (rows, groups), scale_dtype, _unreadable),
        LazyTensor(stem + "weight_shape", (2,), "int64", lambda start, stop: shape[start:stop]),
    ]


def _unreadable(start: int, stop: int) -> NDArray[Any]:
    raise InternalError("a packed tensor is written, never read")


def _cut(parts: Mapping[str, Iterable[LazyTensor]], shard_bytes: int) -> list[_Shard]:
    """Fill shards in order up to `shard_bytes` of tensors; what belongs to one module stays together."""
    groups: list[list[LazyTensor]] = [[]]
    used = 0
    for tensors in parts.values():
        size = sum(tensor.size_bytes for tensor in tensors)
        if groups[-1] and used + size > shard_bytes:
            groups.append([])
            used = 0
        groups[-1].extend(tensors)
        used += size
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = ["model.safetensors"]
    metadata = {"format": "pt"}  # transformers refuses a file without it
    return [
        _Shard(name, safetensors.plan(group, metadata)) for name, group in zip(names, groups, strict=True)
    ]


def _write_file(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
