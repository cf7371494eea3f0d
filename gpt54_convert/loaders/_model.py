"""From the tensors of some files to a checkpoint: canonical names, orientation, tying, checked shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpt54_convert import archs
from gpt54_convert.archs import Architecture, Match
from gpt54_convert.core import views
from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.core.dtypes import is_float
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError
from gpt54_convert.loaders._folder import SideFiles
from gpt54_convert.loaders._text_part import text_part
from gpt54_convert.loaders._tying import equal, settle_tying

LAYER_LIMIT = 100_000


def build(source: Source, raw: Mapping[str, LazyTensor], side: SideFiles) -> Checkpoint:
    """The checkpoint made of the tensors `raw`, named as in the files, and the files beside them.

    An architecture that nobody described keeps its names and is not checked.
    Raises InputError where tensors and config.json disagree, UnsupportedError for an undescribed variant.
    """
    raw, side, notes = text_part(raw, side)
    architecture = archs.for_config(side.config)
    tensors = without_twins(raw)
    config: Mapping[str, Any] = side.config
    if architecture is not None:
        sizes = _sizes(architecture, config)
        expected = architecture.expected(sizes)
        tensors = _canonical(architecture, tensors)
        tensors = {
            name: _checked(architecture, expected, sizes, tensors[name])
            for name in sorted(tensors, key=layer_by_layer(architecture))
        }
        tensors, config = settle_tying(tensors, config, architecture)
        _check_complete(expected, tensors)
    return Checkpoint(
        tensors=tensors,
        config=config,
        source=source,
        architecture=None if architecture is None else architecture.name,
        generation_config=side.generation_config,
        tokenizer=side.tokenizer,
        notes=notes,
    )


def _sizes(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, int]:
    """The named sizes of a config, all sane: they bound loops and shapes from here on."""
    try:
        architecture.checks(config)
        sizes = architecture.sizes(config)
        wrong = [key for key, size in sizes.items() if type(size) is not int or not 0 <= size < 1 << 40]
    except (TypeError, ValueError, ArithmeticError, AttributeError, KeyError) as error:
        raise InputError(
            f"config.json: a size is missing or no number ({error}); get the file again"
        ) from error
    if wrong:
        raise InputError(
            f"config.json: {wrong[0]} = {str(sizes[wrong[0]])[:40]} is no sane size; get it again"
        )
    for stack in {weight.stack for weight in architecture.weights} & set(sizes):
        if sizes[stack] > LAYER_LIMIT:
            raise InputError(f"config.json: {sizes[stack]} layers are more than any model has; get it again")
    return sizes


def without_twins(raw: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors that are one range of bytes under several names, kept under each one only if it is unique.

    torch files name tied weights twice; `read` is then the same function.  The first name stays.
    """
    seen: set[int] = set()
    kept = {}
    for name, tensor in raw.items():
        if id(tensor.read) not in seen:
            seen.add(id(tensor.read))
            kept[name] = tensor
    return kept


def layer_by_layer(architecture: Architecture) -> Callable[[str], tuple[int, ...]]:
    """A key that sorts names as the model runs; files sort them by type and letter instead."""
    places: dict[tuple[str, str], tuple[int, int]] = {}
    stacks: dict[str, int] = {}
    for index, weight in enumerate(architecture.weights):
        first = stacks.setdefault(weight.stack, index) if "{i}" in weight.hf else index
        places[weight.hf, weight.hf_suffix] = (first, index)

    def key(name: str) -> tuple[int, ...]:
        match = architecture.match(name)
        if match is None:
            return (len(places),)
        first, index = places[match.weight.hf, match.weight.hf_suffix]
        return first, match.layer or 0, index, int(match.is_bias)

    return key


def _canonical(architecture: Architecture, raw: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    result: dict[str, LazyTensor] = {}
    for name, tensor in raw.items():
        canonical = architecture.canonical(name)
        if canonical is None:
            continue
        if canonical in result and equal(result[canonical], tensor):
            continue
        if canonical in result:
            raise InputError(
                f"tensor {name}: means {canonical}, which is there with other values; remove one"
            )
        result[canonical] = tensor.renamed(canonical)
    return result


def _checked(
    architecture: Architecture, expected: Mapping[str, Match], sizes: Mapping[str, int], tensor: LazyTensor
) -> LazyTensor:
    """The tensor as [out, in], of the shape that config.json demands; others pass as they are."""
    match = expected.get(tensor.name)
    if match is None:
        stray = architecture.match(tensor.name)
        if stray and stray.layer is not None:
            raise InputError(
                f"tensor {tensor.name}: config.json declares no such layer; get the config of these weights"
            )
        return tensor
    shape, stored = match.shape(sizes), tensor.shape
    if match.is_turned and len(stored) == 2:
        tensor = views.transposed(tensor)
    if tensor.shape != shape:
        wanted = shape[::-1] if match.weight.conv1d else shape
        raise InputError(
            f"tensor {tensor.name}: has shape {list(stored)}, but config.json demands {list(wanted)}; "
            "get the config that belongs to the weights"
        )
    if not is_float(tensor.dtype):
        raise InputError(f"tensor {tensor.name}: is {tensor.dtype}, but a weight must be of a float type")
    return tensor


def _check_complete(expected: Mapping[str, Match], tensors: Mapping[str, LazyTensor]) -> None:
    needed = (
        name
        for name, match in expected.items()
        if not match.weight.optional and not (match.is_bias and match.weight.bias == "maybe")
    )
    missing = [name for name in needed if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"tensor {missing[0]}{more}: missing from the weights; get the files again")
