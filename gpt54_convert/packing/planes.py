"""How GGUF's blocks spread the bits of their codes: planes of 1, 2, 4 or 8 bits each.

A block's codes are cut into runs; a run fills `width` bytes, and byte j holds the elements j, j + width,
j + 2 width … of the run, the first in its lowest bits.  All of ggml's layouts are such planes (ggml-common.h,
ggml-quants.c), but for the fifth bits of q5_0 and q5_1: bit j of a little-endian word belongs to element j.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.kernels.jit import kernel

Bytes = NDArray[np.uint8]
_ONE, _BYTE = np.uint32(1), np.uint32(8)


class Plane(NamedTuple):
    """Some bits of every code of a block.

    at: the plane's first byte in the block.
    width: bytes of a run.
    bits: how many bits of a code, 1, 2, 4 or 8; shift: the lowest of them.
    flip: a mask to xor the codes with (128 makes uint8 codes of signed bytes and back).
    """

    at: int
    width: int
    bits: int
    shift: int = 0
    flip: int = 0


class Word(NamedTuple):
    """Bit number `shift` of each of a block's 32 codes, as a word from byte `at` on."""

    at: int
    shift: int


def pack(codes: Bytes, parts: tuple[Plane | Word, ...], out: Bytes) -> None:
    """Write codes [blocks, elements of a block] into out [blocks, bytes of a block]; leaves other bytes."""
    for part in parts:
        if isinstance(part, Word):
            _pack_word(codes, part, out)
        else:
            _pack_plane(codes, part, out)


def unpack(data: Bytes, parts: tuple[Plane | Word, ...], elements: int) -> Bytes:
    """The codes [blocks, elements] of data [blocks, bytes of a block]."""
    codes = np.zeros((len(data), elements), np.uint8)
    for part in parts:
        if isinstance(part, Word):
            _unpack_word(data, part, codes)
        else:
            _unpack_plane(data, part, codes)
    return codes


@kernel
def _pack_plane(codes: Bytes, plane: Plane, out: Bytes) -> None:
    parts, mask = 8 // plane.bits, (1 << plane.bits) - 1
    for i in range(codes.shape[0]):
        for start in range(0, codes.shape[1], plane.width * parts):
            target = out[i, plane.at + start // parts :]
            for part in range(parts):
                source = codes[i, start + part * plane.width :]
                for j in range(plane.width):
                    bits = (((source[j] ^ plane.flip) >> plane.shift) & mask) << (plane.bits * part)
                    target[j] = bits if part == 0 else target[j] | bits


@kernel
def _unpack_plane(data: Bytes, plane: Plane, codes: Bytes) -> None:
    parts, mask = 8 // plane.bits, (1 << plane.bits) - 1
    for i in range(codes.shape[0]):
        for start in range(0, codes.shape[1], plane.width * parts):
            source = data[i, plane.at + start // parts :]
            for part in range(parts):
                target = codes[i, start + part * plane.width :]
                for j in range(plane.width):
                    bits = ((source[j] >> (plane.bits * part)) & mask) << plane.shift
                    target[j] = (target[j] | bits) ^ plane.flip


@kernel
def _pack_word(codes: Bytes, part: Word, out: Bytes) -> None:
    shift = np.uint32(part.shift)
    for i in range(codes.shape[0]):
        word = np.uint32(0)
        for j in range(32):
            word |= ((np.uint32(codes[i, j]) >> shift) & _ONE) << np.uint32(j)
        for j in range(4):
            out[i, part.at + j] = word & np.uint32(255)
            word >>= _BYTE


@kernel
def _unpack_word(data: Bytes, part: Word, codes: Bytes) -> None:
    shift = np.uint32(part.shift)
    for i in range(codes.shape[0]):
        word = np.uint32(0)
        for j in range(4):
            word |= np.uint32(data[i, part.at + j]) << (_BYTE * np.uint32(j))
        for j in range(32):
            codes[i, j] |= ((word >> np.uint32(j)) & _ONE) << shift
