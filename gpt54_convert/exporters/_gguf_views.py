"""A checkpoint's tensors as GGUF stores them: names, row order, norms, types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert import archs
from gpt54_convert.archs import Architecture, Match
from gpt54_convert.archs import _metadata as metadata
from gpt54_convert.core import views
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InternalError, UnsupportedError
from gpt54_convert.packing import ggml as packing
from gpt54_convert.quantize.grids import grid

# What llama.cpp's graphs take in float32 only, or what is too small to gain from fewer bits.
FLOAT32_ROLES = re.compile(r"(enc\.)?(norm\..*|attn\.rel_bias|embed\.position|embed\.type)|.*\.bias")
_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """The description of the checkpoint's architecture.  Raises UnsupportedError where there is none."""
    if checkpoint.architecture is None:
        model_type = checkpoint.config.get("model_type")
        if not checkpoint.config:
            raise UnsupportedError(
                "GGUF needs config.json, and a lone file has none; name the folder that holds both"
            )
        raise UnsupportedError(
            f"model_type {model_type!r} is not described, so its GGUF names are unknown (described: "
            f"{', '.join(archs.names())}); to add it, write one table gpt54_convert/archs/{model_type}.py as "
            "docs/architectures.md shows"
        )
    found = archs.by_name(checkpoint.architecture)
    if not found.gguf:
        raise UnsupportedError(f"GGUF has no architecture for a {found.name}")
    return found


def stored(checkpoint: Checkpoint, architecture: Architecture) -> list[tuple[LazyTensor, str]]:
    """Every tensor as it is written, in file order, each with ggml's name of its type.

    Raises UnsupportedError for a tensor that GGUF has no place for, unless the table says to leave it out.
    """
    sizes = architecture.sizes(checkpoint.config)
    scales = architecture.gguf_scales(checkpoint.config)
    result = [
        (views.from_array(name, values), "F32")
        for name, values in architecture.gguf_tensors(checkpoint.config).items()
    ]
    unwanted = dropped(checkpoint, architecture)
    for name, tensor in checkpoint.tensors.items():
        if name in unwanted:
            continue
        match = architecture.match(name)
        if match is None:
            raise UnsupportedError(
                f"tensor {name} has no place in a GGUF file of architecture {architecture.gguf}; if llama.cpp"
                f" has one, add it to gpt54_convert/archs/{architecture.name}.py"
            )
        view = _view(tensor, match, sizes, scales.get(name))
        result.append((view, _type(view)))
    return result


def dropped(checkpoint: Checkpoint, architecture: Architecture) -> list[str]:
    """The tensors that are left out because the table says so; others without a place are refused."""

    def unwanted(name: str) -> bool:
        match = architecture.match(name)
        if match is None:
            return any(re.fullmatch(each, name) for each in architecture.gguf_dropped)
        return not match.gguf

    return [name for name in checkpoint.tensors if unwanted(name)]


def unscaled_keys(checkpoint: Checkpoint, architecture: Architecture) -> list[tuple[str, str, Any]]:
    """The own values of the vectors that are stored scaled, so that they come back to the last bit."""
    keys = []
    for name in architecture.gguf_scales(checkpoint.config):
        tensor, match = checkpoint.tensors.get(name), architecture.match(name)
        if tensor is not None and match is not None:
            values = tensor.float_rows(0, tensor.row_count).reshape(-1)
            keys.append((metadata.UNSCALED_KEY + match.gguf, "ARRAY:FLOAT32", values))
    return keys


def _view(tensor: LazyTensor, match: Match, sizes: Mapping[str, int], scale: float | None) -> LazyTensor:
    view = tensor.renamed(match.gguf)
    if match.weight.rope:
        view = views.permuted_heads(view, sizes[match.weight.rope])
    if match.weight.plus_one:
        view = views.shifted(view, 1.0)
    if scale is not None:
        view = scaled(view, scale)
    storable = view.dtype in _FLOATS or view.grid is not None
    if not storable or len(view.shape) < 2 or FLOAT32_ROLES.fullmatch(match.role):
        view = views.cast(view, "float32")
    return view


def scaled(tensor: LazyTensor, factor: float) -> LazyTensor:
    """A vector multiplied by `factor`, rounded to float32 once."""

    def read(start: int, stop: int) -> NDArray[Any]:
        values = tensor.float_rows(start, stop).reshape(stop - start, *tensor.shape[1:])
        return (values.astype(np.float64) * factor).astype(np.float32)

    return replace(tensor, dtype="float32", read=read, grid=None, read_codes=None)


def _type(view: LazyTensor) -> str:
    if view.grid is None:
        return _FLOATS[view.dtype]
    name = packing.ggml_type(grid(view.grid))
    if name is None:
        raise UnsupportedError(f"tensor {view.name} cannot be stored as {view.grid}: GGUF has no such type")
    if len(view.shape) != 2:
        raise InternalError(f"tensor {view.name} is on grid {view.grid}, but is no matrix")
    return name.upper()
