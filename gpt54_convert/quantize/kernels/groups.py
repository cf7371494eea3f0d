"""What the kernels with one level of scales share: extremes, float16 rounding, choosing a candidate.

Plain rounding takes sixteen groups at a time and computes their scales side by side, one in each lane (see
`lanes.py`).  A search takes one group at a time and sixteen candidate scales.  Either way every sum keeps the
order of the elements, and a group may be of any length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.kernels.jit import inlined, kernel
from gpt54_convert.quantize.kernels.lanes import (
    fma,
    interleave,
    load,
    lower,
    magnitude,
    select,
    splat,
    store,
    swap,
    upper,
)

WIDTH = 16
TILE = WIDTH * WIDTH
F32: Any = np.float32  # Any, for type checkers know nothing of Numba's arithmetic
ZERO, ONE = F32(0), F32(1)
# Float16's smallest and largest size, and its smallest size of full precision.
HALF_TINY, HALF_MAX, HALF_NORMAL = F32(2.0**-24), F32(65504), F32(2.0**-14)
_TINY_STEPS = F32(0.75)  # added to a small float32 and taken away, it leaves a multiple of 2**-24
_SPLIT = F32(2**13 + 1)  # Veltkamp's splitting: keeps the upper 11 of 24 bits, ties to even
# Another candidate must beat plain rounding by more than the noise of float32 sums.
MARGIN = F32(1 - 1e-5)
# Places in `Groups.spare`: two tiles, the numbers of the lanes, and zeros that stay so while all is finite.
_SECOND, _LANES, _BAD = TILE, 2 * TILE, 2 * TILE + WIDTH

Floats = NDArray[np.float32]
Lanes = Any  # sixteen float32, known to Numba only


class Groups(NamedTuple):
    """What is quantized, and room to work in.

    x: float32 [groups, group]; flat: the same memory in one dimension.
    w: float32 [groups of a row, group], the importance of each column, of mean 1 in every group.
    spare: scratch, made by `scratch`.
    """

    x: Floats
    flat: Floats
    w: Floats
    spare: Floats


class Coded(NamedTuple):
    """What comes out.

    codes: uint8, one dimension; scale, offset: float32 [groups], holding float16 numbers or integers.
    """

    codes: NDArray[np.uint8]
    scale: Floats
    offset: Floats


def scratch() -> Floats:
    """`Groups.spare`, new."""
    spare = np.zeros(_BAD + WIDTH, np.float32)
    spare[_LANES:_BAD] = np.arange(WIDTH)
    return spare


def not_finite(groups: Groups) -> bool:
    """True after a kernel met an element that is not finite."""
    return bool((groups.spare[_BAD:] != 0).any())


@kernel
def _half_bits(bits: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    for i in range(bits.size):
        size = np.uint32(bits[i] & np.uint32(0x7FFFFFFF))
        sign = np.uint32((bits[i] >> 16) & np.uint32(0x8000))
        normal = np.uint32((size >> 13) - np.uint32(112 << 10))  # an exponent of bias 15 instead of 127
        # Below 2**-14 the number is a multiple of 2**-24: its digits, shifted to where they stand for those.
        digits = np.uint32((size & np.uint32(0x7FFFFF)) | np.uint32(0x800000))
        places: Any = min(max(np.int32(126 - np.int32(size >> 23)), 0), 31)
        tiny = np.uint32(digits >> places)
        out[i] = np.uint16(sign | (tiny if size < np.uint32(0x38800000) else normal))


def as_float16(values: Floats) -> NDArray[np.float16]:
    """float16 of float32 numbers that float16 can hold; many times as fast as NumPy, which has to round."""
    out = np.empty(values.shape, np.uint16)
    _half_bits(values.view(np.uint32), out)
    return out.view(np.float16)


@inlined
def halves(x: Lanes) -> Lanes:
    """The float16 nearest to each x, as float32; sizes below 2**-24 and above 65504 become those (0 stays 0).

    NaN becomes any float16.
    """
    size = lower(upper(magnitude(x), splat(HALF_TINY)), splat(HALF_MAX))
    spread, steps, zero = size * splat(_SPLIT), splat(_TINY_STEPS), splat(ZERO)
    size = select(size < splat(HALF_NORMAL), (size + steps) - steps, spread - (spread - size))
    size = select(zero < magnitude(x), size, zero)
    return select(x < zero, zero - size, size)


@inlined
def reciprocal(x: Lanes) -> Lanes:
    """1 / x, and 0 for 0."""
    return select(splat(ZERO) < magnitude(x), splat(ONE) / x, splat(ZERO))


@inlined
def clamp(x: Lanes, low: Lanes, high: Lanes) -> Lanes:
    """x held between low and high; low where x is NaN."""
    return lower(upper(x, low), high)


@inlined
def _scan(groups: Groups, g: int) -> tuple[Lanes, Lanes]:
    """Smallest and largest elements of group g, over elements 0, 16, 32 … in lane 0, and so on.

    An element that is not finite leaves its trace in the scratch: 0 · x is not 0.
    """
    length = groups.x.shape[1]
    start, whole = g * length, length - length % WIDTH
    zero, bad = splat(ZERO), load(groups.spare, _BAD)
    smallest = largest = splat(groups.x[g, 0])
    for j in range(0, whole, WIDTH):
        x = load(groups.flat, start + j)
        smallest, largest, bad = lower(x, smallest), upper(x, largest), fma(x, zero, bad)
    for j in range(whole, length):
        x = splat(groups.x[g, j])
        smallest, largest, bad = lower(x, smallest), upper(x, largest), fma(x, zero, bad)
    store(groups.spare, _BAD, bad)
    return smallest, largest


@inlined
def extremes(groups: Groups, g: int) -> tuple[Lanes, Lanes]:
    """Smallest and largest element of group g, in all lanes."""
    smallest, largest = _scan(groups, g)
    smallest, largest = lower(smallest, swap(smallest, 8)), upper(largest, swap(largest, 8))
    smallest, largest = lower(smallest, swap(smallest, 4)), upper(largest, swap(largest, 4))
    smallest, largest = lower(smallest, swap(smallest, 2)), upper(largest, swap(largest, 2))
    return lower(smallest, swap(smallest, 1)), upper(largest, swap(largest, 1))


@inlined
def extremes_of_sixteen(groups: Groups, first: int, some: int) -> tuple[Lanes, Lanes]:
    """Smallest and largest element of group `first` and the next, each in its lane; any after `some`."""
    spare = groups.spare
    for i in range(some):
        smallest, largest = _scan(groups, first + i)
        store(spare, WIDTH * i, smallest)
        store(spare, _SECOND + WIDTH * i, largest)
    half = WIDTH // 2
    while half > 0:  # interleaving folds lanes of two groups into one vector; after four rounds there is one
        for i in range(half):
            x, y = load(spare, WIDTH * i), load(spare, WIDTH * (i + half))
            store(spare, WIDTH * i, lower(interleave(x, y, 0), interleave(x, y, 1)))
            x, y = load(spare, _SECOND + WIDTH * i), load(spare, _SECOND + WIDTH * (i + half))
            store(spare, _SECOND + WIDTH * i, upper(interleave(x, y, 0), interleave(x, y, 1)))
        half //= 2
    return load(spare, 0), load(spare, _SECOND)


@inlined
def keep_first(first: Lanes, others: Lanes, spare: Floats) -> Lanes:
    """Lane 0 of `first`, the other lanes of `others`."""
    return select(load(spare, _LANES) < splat(ONE), first, others)


@inlined
def _better(
    error: Lanes, scale: Lanes, offset: Lanes, others: tuple[Lanes, Lanes, Lanes]
) -> tuple[Any, Any, Any]:
    mask = others[0] < error
    return select(mask, others[0], error), select(mask, others[1], scale), select(mask, others[2], offset)


@inlined
def best(error: Lanes, scale: Lanes, offset: Lanes, spare: Floats) -> tuple[Any, Any, Any]:
    """Error, scale and offset (three float32) of the lane of least error; NaN never wins over lane 0."""
    error, scale, offset = _better(error, scale, offset, (swap(error, 8), swap(scale, 8), swap(offset, 8)))
    error, scale, offset = _better(error, scale, offset, (swap(error, 4), swap(scale, 4), swap(offset, 4)))
    error, scale, offset = _better(error, scale, offset, (swap(error, 2), swap(scale, 2), swap(offset, 2)))
    error, scale, offset = _better(error, scale, offset, (swap(error, 1), swap(scale, 1), swap(offset, 1)))
    store(spare, 0, error)
    store(spare, WIDTH, scale)
    store(spare, 2 * WIDTH, offset)
    return spare[0], spare[WIDTH], spare[2 * WIDTH]
