"""Kernels of grids whose groups have a scale and no offset: symmetric integers, and iq4_nl's levels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpt54_convert.quantize.kernels.groups import (
    F32,
    MARGIN,
    ONE,
    WIDTH,
    ZERO,
    Coded,
    Floats,
    Groups,
    Lanes,
    best,
    clamp,
    extremes,
    half,
    halves,
    keep_first,
)
from gpt54_convert.quantize.kernels.jit import inlined, kernel
from gpt54_convert.quantize.kernels.lanes import fma, load, rint, select, splat


class Form(NamedTuple):
    """A grid's numbers: its least and greatest level, and what they are.

    unsigned: 1 where scales are never negative (8 bits: the levels reach about equally far to both sides).
        Else 0: the element of greatest size stands on the lowest level, which has no counterpart above.
    curved: True for iq4_nl, None for integers (Numba compiles the two apart).
    """

    low: float
    high: float
    unsigned: int
    curved: bool | None


@inlined
def _peak(groups: Groups, g: int, form: Form) -> Any:
    """The element of greatest size of group g (its size only for `unsigned`)."""
    smallest, largest = extremes(groups, g)
    peak = largest if largest > -smallest else smallest
    return abs(peak) if form.unsigned else peak


@inlined
def _curved_level(y: Lanes) -> Lanes:
    """iq4_nl's level nearest to y (ggml-common.h, kvalues_iq4nl).

    Written out with literal numbers, here and below: Numba would read a table of them from memory.
    """
    level = splat(F32(-127))
    level = select(splat(F32(-115.5)) < y, splat(F32(-104)), level)
    level = select(splat(F32(-93.5)) < y, splat(F32(-83)), level)
    level = select(splat(F32(-74)) < y, splat(F32(-65)), level)
    level = select(splat(F32(-57)) < y, splat(F32(-49)), level)
    level = select(splat(F32(-42)) < y, splat(F32(-35)), level)
    level = select(splat(F32(-28.5)) < y, splat(F32(-22)), level)
    level = select(splat(F32(-16)) < y, splat(F32(-10)), level)
    level = select(splat(F32(-4.5)) < y, splat(F32(1)), level)
    level = select(splat(F32(7)) < y, splat(F32(13)), level)
    level = select(splat(F32(19)) < y, splat(F32(25)), level)
    level = select(splat(F32(31.5)) < y, splat(F32(38)), level)
    level = select(splat(F32(45.5)) < y, splat(F32(53)), level)
    level = select(splat(F32(61)) < y, splat(F32(69)), level)
    level = select(splat(F32(79)) < y, splat(F32(89)), level)
    level = select(splat(F32(101)) < y, splat(F32(113)), level)
    return level


@inlined
def _curved_code(y: Any) -> Any:
    """The number of iq4_nl's level nearest to y: how many middles between two levels lie below y."""
    return (
        np.uint8(y > F32(-115.5))
        + np.uint8(y > F32(-93.5))
        + np.uint8(y > F32(-74))
        + np.uint8(y > F32(-57))
        + np.uint8(y > F32(-42))
        + np.uint8(y > F32(-28.5))
        + np.uint8(y > F32(-16))
        + np.uint8(y > F32(-4.5))
        + np.uint8(y > F32(7))
        + np.uint8(y > F32(19))
        + np.uint8(y > F32(31.5))
        + np.uint8(y > F32(45.5))
        + np.uint8(y > F32(61))
        + np.uint8(y > F32(79))
        + np.uint8(y > F32(101))
    )


@inlined
def _nearest(y: Lanes, low: Lanes, high: Lanes, form: Form) -> Lanes:
    """The level nearest to y, both in units of the scale."""
    if form.curved is None:
        return clamp(rint(y), low, high)
    return _curved_level(y)


@inlined
def _encode(groups: Groups, g: int, scale: Any, form: Form, out: Coded) -> None:
    """Write the codes and the scale of group g."""
    inverse = ONE / scale if scale != ZERO else ZERO
    out.scale[g] = scale
    low, high = np.float32(form.low), np.float32(form.high)
    for j in range(groups.x.shape[1]):
        y = groups.x[g, j] * inverse
        if form.curved is None:
            out.codes[g, j] = np.uint8(np.int32(min(max(np.rint(y), low), high) - low))
        else:
            out.codes[g, j] = _curved_code(y)


@kernel
def rtn_signed(groups: Groups, factor: Any, form: Form, out: Coded) -> None:
    """Plain rounding; a group's scale is its peak times `factor` (float32), rounded to float16."""
    for g in range(groups.x.shape[0]):
        _encode(groups, g, half(_peak(groups, g, form) * factor), form, out)


@inlined
def _refit(groups: Groups, g: int, column: int, scale: Lanes, form: Form) -> Lanes:
    """The scales of least squared error for the codes that belong to the scales given."""
    low, high = splat(np.float32(form.low)), splat(np.float32(form.high))
    inverse = splat(ONE) / scale
    first, second = splat(ZERO), splat(ZERO)
    for j in range(groups.x.shape[1]):
        x, w = splat(groups.x[g, j]), splat(groups.w[column, j])
        level = _nearest(x * inverse, low, high, form)
        weighted = w * level
        first, second = fma(weighted, x, first), fma(weighted, level, second)
    return halves(first / second)


@inlined
def _error(groups: Groups, g: int, column: int, scale: Lanes, form: Form) -> Lanes:
    """Sum of w · (x - dequantized x)² of group g on each of the scales."""
    low, high = splat(np.float32(form.low)), splat(np.float32(form.high))
    inverse, error = splat(ONE) / scale, splat(ZERO)
    for j in range(groups.x.shape[1]):
        x, w = splat(groups.x[g, j]), splat(groups.w[column, j])
        missed = x - _nearest(x * inverse, low, high, form) * scale
        error = fma(w * missed, missed, error)
    return error


@kernel
def search_signed(groups: Groups, ladder: Floats, refits: int, form: Form, out: Coded) -> None:
    """The best of ladder.size scales a group, each `refits` times refitted to its codes.

    ladder: float32, a multiple of sixteen factors on the peak; the first, plain rounding's, is not refitted.
    """
    for g in range(groups.x.shape[0]):
        peak, column = _peak(groups, g, form), g % groups.w.shape[0]
        scale, error = ZERO, np.float32(np.inf)
        if peak != ZERO:
            for start in range(0, ladder.size, WIDTH):
                plain = halves(splat(peak) * load(ladder, start))
                candidates = plain
                for _ in range(refits):
                    candidates = keep_first(plain, _refit(groups, g, column, candidates, form), groups.spare)
                errors = _error(groups, g, column, candidates, form)
                if start == 0:
                    errors = keep_first(errors * splat(MARGIN), errors, groups.spare)
                lowest, its_scale, _ = best(errors, candidates, candidates, groups.spare)
                if lowest < error:
                    scale, error = its_scale, lowest
        _encode(groups, g, scale, form, out)
