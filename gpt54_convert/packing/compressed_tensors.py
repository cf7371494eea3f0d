"""compressed-tensors' two layouts of integer weights: codes packed into 32-bit words, or a signed byte each.

Source: vllm-project/compressed-tensors, formats `pack-quantized` and `int-quantized`.  Element i of a word
stands at bit bits · i, as an unsigned code whose middle, 2**(bits-1), means zero: our codes as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.errors import InputError, UnsupportedError
from gpt54_convert.quantize.grids import INT, INT_GROUPS, Grid, grid
from gpt54_convert.quantize.qtensor import QTensor

BITS = (4, 8)


def pack(q: QTensor) -> dict[str, NDArray[Any]]:
    """`q` in the format pack-quantized: rows of the result belong to the rows of `q`, whatever chunk it is.

    weight_packed: int32 [rows, columns · bits / 32, rounded up]; weight_scale: [rows, groups], float16 (or
    float32, if `q` has such); weight_shape: int64 [2].
    Raises UnsupportedError for a grid that readers do not take.
    """
    _check(q.grid)
    return {
        "weight_packed": _to_words(q.codes, q.grid.bits),
        "weight_scale": q.scale,
        "weight_shape": np.array(q.shape, np.int64),
    }


def pack_bytes(q: QTensor) -> dict[str, NDArray[Any]]:
    """`q` in the format int-quantized: weight int8 [rows, columns], weight_scale float32 [rows, groups].

    Raises UnsupportedError for a grid of other than 8 bits, and as `pack`.
    """
    _check(q.grid)
    if q.grid.bits != 8:
        raise UnsupportedError(f"int-quantized holds codes of 8 bits, not {q.grid.name}: use int8-channel")
    return {"weight": (q.codes ^ 128).view(np.int8), "weight_scale": q.scale.astype(np.float32)}


def unpack(
    packed: NDArray[np.int32],
    scale: NDArray[np.floating[Any]],
    shape: tuple[int, int],
    bits: int,
    group: int,
    zero_point: NDArray[np.int32] | None = None,
) -> QTensor:
    """The codes of packed [rows, words] and scale [rows, groups], all of the same rows.

    shape: rows and columns; group: 0 for per channel; zero_point: packed along the rows, [rows · bits / 32,
    rounded up, groups], or None for symmetric.  The scale keeps its type, float16 or float32.
    Raises UnsupportedError for bits or groups that no grid has, InputError for arrays that do not fit.
    """
    rows, columns = shape
    target = _grid(bits, group, zero_point is None)
    if not target.fits(columns):
        raise InputError(f"rows of {columns} weights do not divide into groups of {group}")
    groups = columns // group if group else 1
    if packed.shape != (rows, _words(columns, bits)) or scale.size != rows * groups:
        raise InputError(
            f"packed codes {list(packed.shape)} and scale {list(scale.shape)} do not fit a weight of "
            f"{list(shape)} with {bits} bits and groups of {group or columns}"
        )
    offset = None
    if zero_point is not None:
        if zero_point.shape != (_words(rows, bits), groups):
            raise InputError(f"zero points {list(zero_point.shape)} do not fit a scale of {[rows, groups]}")
        offset = np.ascontiguousarray(_from_words(np.ascontiguousarray(zero_point.T), rows, bits).T)
    return QTensor(target, _from_words(packed, columns, bits), scale.reshape(rows, groups), offset)


def unpack_bytes(
    weight: NDArray[np.int8],
    scale: NDArray[np.floating[Any]],
    group: int = 0,
    zero_point: NDArray[np.int8] | None = None,
) -> QTensor:
    """The codes of weight int8 [rows, columns] and scale [rows, groups]; zero_point: int8 as scale, or None.

    Raises as `unpack`.
    """
    rows, columns = weight.shape
    target = _grid(8, group, zero_point is None)
    groups = columns // group if group else 1
    fits = target.fits(columns) and scale.size == rows * groups
    if not fits or (zero_point is not None and zero_point.size != scale.size):
        raise InputError(f"scale {list(scale.shape)} does not fit a weight of {list(weight.shape)}")
    codes = np.bitwise_xor(np.ascontiguousarray(weight).view(np.uint8), np.uint8(128))
    if zero_point is None:
        return QTensor(target, codes, scale.reshape(rows, groups))
    zero = np.ascontiguousarray(zero_point).view(np.uint8).reshape(rows, groups)
    return QTensor(target, codes, scale.reshape(rows, groups), np.bitwise_xor(zero, np.uint8(128)))


def _check(grid: Grid) -> None:
    if grid.kind != INT or grid.bits not in BITS or not grid.symmetric:
        raise UnsupportedError(
            f"compressed-tensors is read reliably with symmetric integers of 4 or 8 bits, not {grid.name}: "
            "use int4-g32, int4-g128 or int8-channel"
        )


def _grid(bits: int, group: int, symmetric: bool) -> Grid:
    if bits not in BITS or group not in (0, *INT_GROUPS):
        raise UnsupportedError(
            f"codes of {bits} bits in groups of {group} cannot be read: only 4 or 8 bits, per channel or in "
            f"groups of {', '.join(map(str, INT_GROUPS))}; convert the model from its floats"
        )
    return grid(f"int{bits}-{f'g{group}' if group else 'channel'}{'' if symmetric else '-asym'}")


def _words(elements: int, bits: int) -> int:
    return -(-elements * bits // 32)


def _to_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Codes [rows, columns] as little-endian words, the last one filled up with zeros."""
    rows, columns = codes.shape
    padded = _words(columns, bits) * 32 // bits
    if padded != columns:
        codes = np.pad(codes, ((0, 0), (0, padded - columns)))
    codes = np.ascontiguousarray(codes)
    if bits == 4:
        pairs = codes.view("<u2")  # the first of two codes in the lower byte
        codes = (pairs | pairs >> 4).astype(np.uint8)
    return codes.view("<i4").reshape(rows, -1)


def _from_words(words: NDArray[np.int32], columns: int, bits: int) -> NDArray[np.uint8]:
    """Codes [rows, columns] of `_to_words`."""
    data = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 4:
        data = ((data.astype("<u2") | data.astype("<u2") << 4) & 0x0F0F).view(np.uint8)
    return np.ascontiguousarray(data[:, :columns])
