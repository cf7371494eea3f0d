"""The weights of a written ONNX folder, read back from its files, and a shallow model of some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert import archs
from gpt54_convert.archs._resize import resized
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.dtypes import STORAGE
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.exporters._hf_folder import stored_grid
from gpt54_convert.exporters._onnx_store import CODES, SCALES, VALUES, ZERO_POINTS, Part
from gpt54_convert.formats._file import ReadFile
from gpt54_convert.packing import onnx as packing
from gpt54_convert.quantize.qtensor import QTensor

# Enough for every tokenizer's special tokens, little enough for a float head to be small.
_VOCABULARY = 4096
_STACKS = ("layers", "encoder_layers")


def read_back(folder: Path, stored: Checkpoint, parts: Mapping[str, Mapping[str, Part]]) -> Checkpoint:
    """`stored` with every tensor's rows (and codes) as they stand in the files."""
    return stored.with_tensors(
        {name: _read_back(folder, stored.tensors[name], found) for name, found in parts.items()}
    )


def _read_back(folder: Path, view: LazyTensor, parts: Mapping[str, Part]) -> LazyTensor:
    files = {kind: ReadFile.at(folder / part.file) for kind, part in parts.items()}

    def rows_of(kind: str, start: int, stop: int) -> NDArray[Any]:
        part = parts[kind]
        row_bytes = part.size_bytes // max(1, view.row_count)
        shape = (stop - start, *part.shape[1:])
        return files[kind].array(part.offset + start * row_bytes, shape, STORAGE[part.dtype])

    if VALUES in parts:
        return replace(view, read=lambda start, stop: rows_of(VALUES, start, stop), column_read=False)
    target = stored_grid(view.grid or "")

    def codes(start: int, stop: int) -> QTensor:
        points = rows_of(ZERO_POINTS, start, stop) if ZERO_POINTS in parts else None
        stored, scales = rows_of(CODES, start, stop), rows_of(SCALES, start, stop)
        return packing.unpack(stored, scales, target, view.columns, points)

    def values(start: int, stop: int) -> NDArray[np.float32]:
        return codes(start, stop).dequantize()

    return replace(view, grid=target.name, read=values, read_codes=codes, column_read=False)


def shallow(checkpoint: Checkpoint) -> Checkpoint:
    """The first layers of a model, one of each kind at least, and the first rows of its vocabulary.

    What is left is the model's own weights in its own widths, small enough to be run beside torch.
    """
    architecture = archs.by_name(checkpoint.architecture or "")
    sizes = architecture.sizes(checkpoint.config)
    depth = _kinds(architecture.layer_types(checkpoint.config))
    fewer = {**sizes, "vocab": min(sizes["vocab"], _VOCABULARY)}
    fewer |= {stack: min(sizes[stack], depth) for stack in _STACKS if stack in sizes}
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        match = architecture.match(name)
        if match is None or (match.layer is not None and match.layer >= depth):
            continue
        is_table = match.role in ("embed", "head", "head.bias")
        shape = (min(tensor.shape[0], _VOCABULARY), *tensor.shape[1:]) if is_table else tensor.shape
        tensors[name] = replace(tensor, shape=shape)
    kept = {stack: range(fewer[stack]) for stack in _STACKS if stack in sizes}
    config = resized(architecture, checkpoint.config, fewer, kept)
    for key in [key for key in config if key.endswith("_token_id")]:  # they may lie beyond
        config[key] = 0 if key in ("pad_token_id", "decoder_start_token_id") else None
    return replace(checkpoint.with_tensors(tensors), config=config, generation_config=None, tokenizer={})


def _kinds(types: Sequence[str] | None) -> int:
    """How many layers hold one of each kind: attention may alternate between local and global."""
    return max(2, *(types.index(kind) + 1 for kind in set(types))) if types else 2
