"""What the kernels with one level of scales share: extremes, float16 rounding, choosing a candidate.

A search tries sixteen candidate scales of one group at a time, one in each lane (see `lanes.py`).  So the
sums of every candidate keep the order of the elements, and a group may be of any length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.kernels.jit import inlined
from gpt54_convert.quantize.kernels.lanes import load, lower, magnitude, select, splat, store, swap, upper

WIDTH = 16
F32: Any = np.float32  # Any, for type checkers know nothing of Numba's arithmetic
ZERO, ONE = F32(0), F32(1)
# Float16's smallest and largest size, and its smallest size of full precision.
HALF_TINY, HALF_MAX, HALF_NORMAL = F32(2.0**-24), F32(65504), F32(2.0**-14)
_TINY_STEPS = F32(0.75)  # added to a small float32 and taken away, it leaves a multiple of 2**-24
_SPLIT = F32(2**13 + 1)  # Veltkamp's splitting: keeps the upper 11 of 24 bits, ties to even
# Another candidate must beat plain rounding by more than the noise of float32 sums.
MARGIN = F32(1 - 1e-5)
# Numba makes int64 of int32 operators on plain numbers, which halves the speed: hence these.
_POSITIVE: Any = np.int32(2**31 - 1)
_NEGATIVE: Any = np.int32(-(2**31))
_SIGN: Any = np.int32(31)
_INFINITY: Any = np.int32(0x7F800000)
_BAD = 4 * WIDTH

Floats = NDArray[np.float32]
Lanes = Any  # sixteen float32, known to Numba only


class Groups(NamedTuple):
    """What is quantized, and room to work in.

    x: float32 [groups, group]; bits: the same memory as int32.
    w: float32 [groups of a row, group], the importance of each column, of mean 1 in every group.
    spare: 65 float32 of scratch, of which 48 … 63 hold 0 … 15.
    words: the same memory as int32; the last becomes 1 where an element is not finite.
    """

    x: Floats
    bits: NDArray[np.int32]
    w: Floats
    spare: Floats
    words: NDArray[np.int32]


def scratch() -> Floats:
    """`Groups.spare`, new."""
    spare = np.zeros(_BAD + 1, np.float32)
    spare[3 * WIDTH : _BAD] = np.arange(WIDTH)
    return spare


def not_finite(groups: Groups) -> bool:
    """True after a kernel met an element that is not finite."""
    return bool(groups.words[_BAD])


class Coded(NamedTuple):
    """What comes out.

    codes: uint8 [groups, group]; scale, offset: float32 [groups], holding float16 numbers or integers.
    """

    codes: NDArray[np.uint8]
    scale: Floats
    offset: Floats


@inlined
def half(x: float) -> Any:
    """The float16 nearest to x as a float32; sizes below 2**-24 and above 65504 become those (0 stays 0)."""
    size = min(max(abs(x), HALF_TINY), HALF_MAX)
    spread = size * _SPLIT
    size = (size + _TINY_STEPS) - _TINY_STEPS if size < HALF_NORMAL else spread - (spread - size)
    size = size if abs(x) > ZERO else ZERO
    return -size if x < ZERO else size


@inlined
def halves(x: Lanes) -> Lanes:
    """`half` of sixteen numbers; any float16 where x is NaN."""
    size = lower(upper(magnitude(x), splat(HALF_TINY)), splat(HALF_MAX))
    spread, steps, zero = size * splat(_SPLIT), splat(_TINY_STEPS), splat(ZERO)
    size = select(size < splat(HALF_NORMAL), (size + steps) - steps, spread - (spread - size))
    size = select(zero < magnitude(x), size, zero)
    return select(x < zero, zero - size, size)


@inlined
def _ordered(bits: Any) -> Any:
    """Bits of a float32 as an int32 that sorts as the float does; its own inverse."""
    return bits ^ ((bits >> _SIGN) & _POSITIVE)


@inlined
def extremes(groups: Groups, g: int) -> tuple[Any, Any]:
    """Smallest and largest element of group g; notes whether one is not finite.

    Floats are compared as integers: LLVM vectorises integer minima, but not float ones, which must mind NaN.
    """
    smallest, largest = _POSITIVE, _NEGATIVE
    for j in range(groups.bits.shape[1]):
        ordered = _ordered(groups.bits[g, j])
        smallest, largest = min(smallest, ordered), max(largest, ordered)
    if largest >= _INFINITY or smallest <= ~_INFINITY:  # NaN lies beyond the infinities
        groups.words[_BAD] = 1
    groups.words[0], groups.words[1] = _ordered(smallest), _ordered(largest)
    return groups.spare[0], groups.spare[1]


@inlined
def clamp(x: Lanes, low: Lanes, high: Lanes) -> Lanes:
    """x held between low and high; low where x is NaN."""
    return lower(upper(x, low), high)


@inlined
def keep_first(first: Lanes, others: Lanes, spare: Floats) -> Lanes:
    """Lane 0 of `first`, the other lanes of `others`."""
    return select(load(spare, 3 * WIDTH) < splat(ONE), first, others)


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
