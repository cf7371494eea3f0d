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
    extremes_of_sixteen,
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
    upper,
)

GROUP, BIAS = 32, 127
# Largest scale code in use: 255 means NaN, and with 253 or more the largest levels overflow float32.
_LARGEST_CODE = 252
# A peak of more than so many scales gets the next larger scale instead of being clipped to 6.
_CLIP = F32(7.25)


def powers_of_two() -> NDArray[np.float32]:
    """2**(code - 127) of each scale code; the kernels look scales and their inverses up in it."""
    exponents = np.minimum(np.arange(256), 2 * BIAS) - BIAS
    powers: NDArray[np.float32] = np.ldexp(np.ones(256, np.float32), exponents)
    return powers


@inlined
def _plain(peak: Any, powers: Floats) -> Any:
    """Scale code of plain rounding: the largest level (6) stands for the peak, give or take `_CLIP`."""
    # Of the codes whose scale is at most a quarter of the peak, the largest: four scales are 2**2.
    code, step = 0, 128
    while step > 0:
        if code + step <= _LARGEST_CODE and powers[code + step] <= peak * F32(0.25):
            code += step
        step //= 2
    if code < _LARGEST_CODE and peak * powers[2 * BIAS - code] > _CLIP:
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


@inlined
def _search(groups: Groups, at: tuple[int, int], w: Floats, powers: Floats, span: tuple[int, int]) -> Any:
    """The best scale code; at: the group's first element and column; span: plain rounding's code, `tries`."""
    first, tries = span
    code, error = first, F32(np.inf)
    for other in range(max(first - tries, 0), min(first + 1, _LARGEST_CODE) + 1):
        scale = powers[other], powers[2 * BIAS - other]
        its_error = _error(groups.flat, w, at[0], at[1], scale, groups.spare)
        its_error = its_error * MARGIN if other == first else its_error
        if its_error < error:
            code, error = other, its_error
    return code


@kernel
def round_mxfp4(groups: Groups, powers: Floats, tries: int, out: Coded) -> None:
    """Plain rounding (tries = 0), or the best scale from plain rounding's / 2**tries to twice it."""
    w, count = groups.w.reshape(-1), groups.x.shape[0]
    peaks = np.empty(WIDTH, np.float32)
    for start in range(0, count, WIDTH):
        some = min(WIDTH, count - start)
        smallest, largest = extremes_of_sixteen(groups, start, some)
        store(peaks, 0, upper(largest, splat(ZERO) - smallest))
        for i in range(some):
            g = start + i
            code = _plain(peaks[i], powers)
            if tries > 0:
                code = _search(groups, (g * GROUP, g % groups.w.shape[0] * GROUP), w, powers, (code, tries))
            out.scale[g] = code
            _encode(groups.flat, g * GROUP, powers[2 * BIAS - code], out.codes)
