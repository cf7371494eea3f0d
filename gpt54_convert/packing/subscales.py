"""How GGUF's superblocks store the codes of their sub-scales and sub-minima (ggml-common.h, ggml-quants.c).

Here scale (and offset) uint8 [superblocks, groups] become the bytes of one field, and these codes again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Field(NamedTuple):
    """at: the field's first byte in a block; size: its bytes; kind: which functions below."""

    at: int
    size: int
    kind: str


def pack(kind: str, scale: Bytes, offset: Bytes | None) -> Bytes:
    """The field's bytes [superblocks, size]."""
    if kind == "nibbles":  # q2_k: scale in the low half, minimum in the high one
        return np.hstack([scale | _present(offset) << 4])
    if kind == "pairs":  # q4_k, q5_k: eight scales and eight minima of six bits
        return _pack_pairs(scale, _present(offset))
    if kind == "sixes":  # q3_k: sixteen scales of six bits
        high = scale >> 4
        low = (scale[:, :8] & 15) | (scale[:, 8:] & 15) << 4
        return np.hstack([low, high[:, :4] | high[:, 4:8] << 2 | high[:, 8:12] << 4 | high[:, 12:] << 6])
    if kind == "split":  # iq4_xs: eight high pairs of bits in a word, then eight low halves
        high, low = scale >> 4, scale & 15
        ends = [high[:, i : i + 1] | high[:, i + 1 : i + 2] << 2 for i in (0, 2, 4, 6)]
        return np.hstack([ends[0] | ends[1] << 4, ends[2] | ends[3] << 4, low[:, ::2] | low[:, 1::2] << 4])
    return scale  # q6_k: signed bytes


def unpack(kind: str, data: Bytes) -> tuple[Bytes, Bytes | None]:
    """Scale and offset codes [superblocks, groups] of the field's bytes [superblocks, size]."""
    low, high = np.bitwise_and(data, np.uint8(15)), np.right_shift(data, np.uint8(4))
    if kind == "nibbles":
        return low, high
    if kind == "pairs":
        return _unpack_pairs(data)
    if kind == "sixes":
        upper = [data[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)]
        return np.hstack([low[:, :8], high[:, :8]]) | np.hstack(upper) << 4, None
    if kind == "split":
        lower = np.stack([low[:, 2:], high[:, 2:]], axis=2).reshape(-1, 8)
        pairs = np.stack([data[:, :2] >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)
        return lower | pairs.reshape(-1, 8) << 4, None
    return data.copy(), None


def _present(offset: Bytes | None) -> Bytes:
    if offset is None:
        raise ValueError("this field wants minima")
    return offset


def _pack_pairs(scale: Bytes, offset: Bytes) -> Bytes:
    """Four scales, four minima, the low halves of the last four of each; the first hold their high bits."""
    first = scale[:, :4] | (scale[:, 4:] >> 4) << 6
    second = offset[:, :4] | (offset[:, 4:] >> 4) << 6
    return np.hstack([first, second, (scale[:, 4:] & 15) | (offset[:, 4:] & 15) << 4])


def _unpack_pairs(data: Bytes) -> tuple[Bytes, Bytes]:
    first, second, third = data[:, :4], data[:, 4:8], data[:, 8:]
    scale = np.hstack([first & 63, third & 15 | (first >> 6) << 4])
    return scale, np.hstack([second & 63, third >> 4 | (second >> 6) << 4])
