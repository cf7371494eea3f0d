"""Kernels of mxfp4: groups of 32 in FP4 E2M1 that share a power of two (OCP Microscaling Formats v1.0).

Here the lanes hold the elements of one group, for only a few scales are worth a try.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.kernels.groups import (
    F32,
    MARGIN,
    WIDTH,
    ZERO,
    Coded,
    Floats,
    Groups,
    Lanes,
    extremes,
)
from gpt54_convert.quantize.kernels.jit import inlined, kernel
from gpt54_convert.quantize.kernels.lanes import (
    fma,
    load,
    lower,
    magnitude,
    rint,
    select,
    splat,
    store,
    store_bytes,
    swap,
)

GROUP, BIAS = 32, 127
# Largest scale code in use: 255 means NaN, and with 253 or more the largest levels overflow float32.
_LARGEST_CODE = np.int32(252)
# A peak of more than so many scales gets the next larger scale instead of being clipped to 6.
_CLIP = F32(7.25)
_EXPONENT, _TWO, _FIRST = np.int32(23), np.int32(2), np.int32(0)


def powers_of_two() -> NDArray[np.float32]:
    """2**(code - 127) of each scale code; the kernels look scales and their inverses up in it."""
    exponents = np.minimum(np.arange(256), 2 * BIAS) - BIAS
    powers: NDArray[np.float32] = np.ldexp(np.ones(256, np.float32), exponents)
    return powers


@inlined
def _plain(groups: Groups, g: int, powers: Floats) -> Any:
    """Scale code of plain rounding: the largest level (6) stands for the peak, give or take `_CLIP`."""
    smallest, largest = extremes(groups, g)
    peak = max(largest, -smallest)
    groups.spare[0] = peak
    code = min(max((groups.words[0] >> _EXPONENT) - _TWO, _FIRST), _LARGEST_CODE)
    if peak * powers[2 * BIAS - code] > _CLIP and code < _LARGEST_CODE:
        code += 1
    return code


@inlined
def _level(y: Lanes) -> Lanes:
    """The level nearest to y ≥ 0 (ties to even): steps of 1/2 below 2, of 1 below 4, of 2 up to 6."""
    two, half = splat(F32(2)), splat(F32(0.5))
    y = lower(y, splat(F32(6)))
    coarse = select(y < splat(F32(4)), rint(y), rint(y * half) * two)
    return select(y < two, rint(y * two) * half, coarse)


@inlined
def _error(x: Floats, w: Floats, start: int, column: int, scale: tuple[Any, Any], spare: Floats) -> Any:
    """Sum of w · (x - dequantized x)² of the group from element `start` on; scale: itself and its inverse."""
    total = splat(ZERO)
    for i in range(0, GROUP, WIDTH):
        size = magnitude(load(x, start + i))
        missed = size - _level(size * splat(scale[1])) * splat(scale[0])
        total = fma(load(w, column + i) * missed, missed, total)
    total = total + swap(total, 8)
    total = total + swap(total, 4)
    total = total + swap(total, 2)
    store(spare, 0, total + swap(total, 1))
    return spare[0]


@inlined
def _encode(x: Floats, start: int, inverse: Any, codes: NDArray[np.uint8]) -> None:
    """Write the codes of the group from element `start` on: the level's number, plus 8 if it is negative."""
    zero, two, four, eight = splat(ZERO), splat(F32(2)), splat(F32(4)), splat(F32(8))
    for i in range(0, GROUP, WIDTH):
        value = load(x, start + i)
        level = _level(magnitude(value) * splat(inverse))
        code = select(
            level < two, level + level, select(level < four, level + two, level * splat(F32(0.5)) + four)
        )
        negative = (value < zero) & (zero < level)
        store_bytes(codes, start + i, select(negative, code + eight, code))


@kernel
def round_mxfp4(groups: Groups, powers: Floats, tries: int, out: Coded) -> None:
    """Plain rounding (tries = 0), or the best scale from plain rounding's / 2**tries to twice it."""
    x, w, codes = groups.x.reshape(-1), groups.w.reshape(-1), out.codes.reshape(-1)
    for g in range(groups.x.shape[0]):
        start, column = g * GROUP, g % groups.w.shape[0] * GROUP
        code = _plain(groups, g, powers)
        if tries > 0:
            scale = powers[code], powers[2 * BIAS - code]
            error = _error(x, w, start, column, scale, groups.spare) * MARGIN
            first = code
            for other in range(max(first - tries, _FIRST), min(first + 1, _LARGEST_CODE) + 1):
                scale = powers[other], powers[2 * BIAS - other]
                its_error = _error(x, w, start, column, scale, groups.spare)
                if its_error < error:
                    code, error = np.int32(other), its_error
        out.scale[g] = code
        _encode(x, start, powers[2 * BIAS - code], codes)
