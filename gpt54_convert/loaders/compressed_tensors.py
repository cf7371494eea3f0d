"""Model folders quantized with compressed-tensors: integer weights, packed or a byte each.

What a weight is stored as is decided from its own tensors, then held against config.json; the patterns in
config.json's `targets` are never run.  Activation schemes are passed over: the weights are what is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.core.checkpoint import Checkpoint, Source
from gpt54_convert.core.dtypes import is_float
from gpt54_convert.core.tensor import LazyTensor
from gpt54_convert.errors import InputError, UnsupportedError, UsageError
from gpt54_convert.loaders import _folder, _model
from gpt54_convert.loaders import safetensors as plain
from gpt54_convert.packing import compressed_tensors as packing
from gpt54_convert.quantize.grids import Grid, grid
from gpt54_convert.quantize.qtensor import QTensor

RANK = 10  # asked first: its folders look like plain safetensors too
DESCRIPTION = "a folder whose config.json names the quantization compressed-tensors"
METHOD = "compressed-tensors"
_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision")
# What stands beside a module's weight: its scale and zero point, and figures for activations and caches.
_BESIDE = ("weight_scale", "weight_zero_point", "weight_shape", "weight_packed")
_PASSED_OVER = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale")
_ADVICE = "convert the model from its float weights instead"

Tensors = Mapping[str, LazyTensor]


def matches(path: Path) -> bool:
    """True for a folder whose config.json has a `quantization_config`, of whatever method."""
    if not path.is_dir() or not _folder.has_file(path, "config.json"):
        return False
    config = _folder.read_json(_folder.contained(path, "config.json"))
    return config.get("quantization_config") is not None


def load(path: Path) -> Checkpoint:
    """The checkpoint in folder `path`; its quantized weights have a grid and hand out their codes.

    Raises UnsupportedError for other quantization methods and for formats of this one that are no integers,
    InputError for anything damaged or contradictory.
    """
    side = _folder.side_files(path)
    scheme = _scheme(side.config["quantization_config"])
    raw, files = plain.read_folder(path)
    tensors = dict(_weights(raw, scheme))
    config = {key: value for key, value in side.config.items() if key != "quantization_config"}
    source = Source(path, METHOD, side.files + files)
    return _model.build(source, tensors, replace(side, config=config))


def _scheme(settings: Any) -> list[tuple[int, bool]]:
    """Bits and symmetry of every group.  Raises UnsupportedError for what cannot be read."""
    if not isinstance(settings, dict):
        raise InputError("config.json: quantization_config must be an object; get the file again")
    method = settings.get("quant_method")
    if method != METHOD:
        raise UnsupportedError(f"weights quantized with {str(method)[:40]} cannot be read; {_ADVICE}")
    groups = settings.get("config_groups")
    if (
        not isinstance(groups, dict)
        or not groups
        or not all(isinstance(each, dict) for each in groups.values())
    ):
        raise InputError("config.json: quantization_config has no config_groups; get the file again")
    if settings.get("sparsity_config"):
        raise UnsupportedError(f"sparse compressed-tensors cannot be read; {_ADVICE}")
    found = []
    for group in groups.values():
        form = group.get("format") or settings.get("format")
        weights = group.get("weights")
        if form not in _FORMATS or not isinstance(weights, dict) or weights.get("type") != "int":
            raise UnsupportedError(f"compressed-tensors as {str(form)[:40]} cannot be read; {_ADVICE}")
        bits = weights.get("num_bits")
        if bits not in (4, 8):
            raise UnsupportedError(f"compressed-tensors of {str(bits)[:10]} bits cannot be read; {_ADVICE}")
        found.append((bits, weights.get("symmetric") is not False))
    return found


def _weights(raw: Tensors, scheme: list[tuple[int, bool]]) -> list[tuple[str, LazyTensor]]:
    """The tensors with every quantized module's parts put together as `X.weight`."""
    result = []
    for name, tensor in raw.items():
        stem, _, last = name.rpartition(".")
        if last == "weight_packed":
            result.append((f"{stem}.weight", _packed(stem, raw, scheme)))
        elif last == "weight" and f"{stem}.weight_scale" in raw:
            result.append((name, _plain_codes(stem, raw, scheme)))
        elif last == "weight_g_idx":
            raise UnsupportedError(f"tensor {name}: weights in activation order cannot be read; {_ADVICE}")
        elif last in _BESIDE and not {f"{stem}.weight_packed", f"{stem}.weight"} & raw.keys():
            raise InputError(f"tensor {name}: the weight it belongs to is missing; get the files again")
        elif last not in _BESIDE and last not in _PASSED_OVER:
            result.append((name, tensor))
    return result


def _packed(stem: str, raw: Tensors, scheme: list[tuple[int, bool]]) -> LazyTensor:
    """A weight packed into 32-bit words: weight_packed [rows, columns * bits / 32] int32."""
    words = raw[f"{stem}.weight_packed"]
    scale, shape = raw.get(f"{stem}.weight_scale"), raw.get(f"{stem}.weight_shape")
    if scale is None or shape is None or shape.shape != (2,) or shape.dtype not in ("int64", "int32"):
        raise InputError(f"tensor {stem}.weight_packed: its weight_scale or weight_shape is missing")
    if words.dtype != "int32" or len(words.shape) != 2:
        raise UnsupportedError(f"tensor {words.name}: is {words.dtype}, no packed integers; {_ADVICE}")
    rows, columns = (int(size) for size in shape.rows(0, 2))
    symmetric = f"{stem}.weight_zero_point" not in raw
    fitting = [
        bits
        for bits, is_symmetric in scheme
        if is_symmetric == symmetric and columns > 0 and words.shape == (rows, math.ceil(columns * bits / 32))
    ]
    if not fitting:
        raise InputError(
            f"tensor {words.name}: shape {list(words.shape)} fits no group of config.json for a weight of "
            f"[{rows}, {columns}]; get the files again"
        )
    target = _grid(stem, fitting[0], (rows, columns), scale, symmetric)
    zero = raw.get(f"{stem}.weight_zero_point")
    offsets = None if zero is None else _packed_offsets(zero, target, rows, scale)

    def codes(start: int, stop: int) -> NDArray[np.uint8]:
        blank = np.ones((stop - start, _groups(target, columns)), np.float16)
        q = packing.unpack(words.rows(start, stop), blank, (stop - start, columns), target.bits, target.group)
        return np.asarray(q.codes, np.uint8)

    return _tensor(f"{stem}.weight", (rows, columns), target, codes, scale, offsets)


def _plain_codes(stem: str, raw: Tensors, scheme: list[tuple[int, bool]]) -> LazyTensor:
    """A weight of one int8 a code."""
    weight, scale = raw[f"{stem}.weight"], raw[f"{stem}.weight_scale"]
    if weight.dtype != "int8" or len(weight.shape) != 2:
        raise UnsupportedError(f"tensor {weight.name}: is {weight.dtype}, no matrix of int8 codes; {_ADVICE}")
    zero = raw.get(f"{stem}.weight_zero_point")
    bits = {bits for bits, is_symmetric in scheme if is_symmetric == (zero is None)}
    if len(bits) != 1:
        raise InputError(
            f"tensor {weight.name}: config.json does not tell whether its codes have 4 or 8 bits"
        )
    target = _grid(stem, bits.pop(), (weight.shape[0], weight.shape[1]), scale, zero is None)
    middle = 1 << (target.bits - 1)

    def shifted(tensor: LazyTensor, start: int, stop: int) -> NDArray[np.uint8]:
        values = tensor.rows(start, stop).astype(np.int16) + middle
        if values.size and not (values.min() >= 0 and values.max() < 2 * middle):
            raise InputError(
                f"tensor {tensor.name}: rows {start}–{stop} exceed {target.bits} bits; get it again"
            )
        return values.astype(np.uint8)

    def offsets(start: int, stop: int) -> NDArray[np.uint8]:
        assert zero is not None
        return shifted(zero, start, stop).reshape(stop - start, -1)

    if zero is not None and (
        zero.dtype != "int8" or zero.shape != scale.shape or zero.shape[0] != weight.shape[0]
    ):
        raise InputError(
            f"tensor {zero.name}: is {zero.dtype}{list(zero.shape)}, which does not fit its scale"
        )
    return _tensor(
        weight.name,
        (weight.shape[0], weight.shape[1]),
        target,
        lambda start, stop: shifted(weight, start, stop),
        scale,
        None if zero is None else offsets,
    )


def _grid(stem: str, bits: int, shape: tuple[int, int], scale: LazyTensor, symmetric: bool) -> Grid:
    """The grid that the scale's shape implies: [rows, columns / group], [rows, 1], or one for all."""
    rows, columns = shape
    per_tensor = scale.size == 1
    groups = 1 if per_tensor else math.prod(scale.shape[1:])
    if (
        not is_float(scale.dtype)
        or not (per_tensor or scale.row_count == rows)
        or not groups
        or columns % groups
    ):
        raise InputError(
            f"tensor {scale.name}: {scale.dtype}{list(scale.shape)} does not fit a weight of {list(shape)}"
        )
    suffix = "channel" if groups == 1 else f"g{columns // groups}"
    try:
        return grid(f"int{bits}-{suffix}{'' if symmetric else '-asym'}")
    except UsageError:
        raise UnsupportedError(
            f"tensor {stem}.weight: groups of {columns // groups} cannot be read; {_ADVICE}"
        ) from None


def _groups(target: Grid, columns: int) -> int:
    return columns // target.group if target.group else 1


def _packed_offsets(zero: LazyTensor, target: Grid, rows: int, scale: LazyTensor) -> Any:
    """Zero points packed along the rows: [rows * bits / 32, groups] int32."""
    per_word = 32 // target.bits
    if zero.dtype != "int32" or zero.shape != (math.ceil(rows / per_word), math.prod(scale.shape[1:])):
        raise InputError(
            f"tensor {zero.name}: is {zero.dtype}{list(zero.shape)}, which does not fit its scale"
        )

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        first = start // per_word
        words = zero.rows(first, math.ceil(stop / per_word)).view(np.uint32)
        shifts = (np.arange(per_word, dtype=np.uint32) * np.uint32(target.bits))[:, None]
        parts = (words[:, None, :] >> shifts) & np.uint32((1 << target.bits) - 1)
        unpacked = parts.reshape(-1, words.shape[1]).astype(np.uint8)
        return np.ascontiguousarray(unpacked[start - first * per_word : stop - first * per_word])

    return read


def _tensor(
    name: str, shape: tuple[int, int], target: Grid, codes: Any, scale: LazyTensor, offsets: Any
) -> LazyTensor:
    """The weight as a lazy tensor: `read` is exact, `read_codes` needs scales that float16 can hold."""
    groups = _groups(target, shape[1])

    def assemble(start: int, stop: int) -> QTensor:
        if scale.size == 1:
            scales = np.broadcast_to(scale.float_rows(0, 1), (stop - start, 1)).copy()
        else:
            scales = scale.float_rows(start, stop).reshape(stop - start, groups)
        return QTensor(target, codes(start, stop), scales, offsets and offsets(start, stop))

    def read_codes(start: int, stop: int) -> QTensor:
        q = assemble(start, stop)
        with np.errstate(over="ignore"):
            halves = q.scale.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), q.scale):
            raise InputError(
                f"tensor {name}: a scale in rows {start}–{stop} is no float16 number, so the codes cannot be "
                "kept; convert to floats (--dtype float32) and quantize those"
            )
        return replace(q, scale=halves)

    return LazyTensor(
        name,
        shape,
        "float32",
        lambda start, stop: assemble(start, stop).dequantize(),
        grid=target.name,
        read_codes=read_codes,
        storage_bytes=shape[0] * target.row_bytes(shape[1]),
    )
