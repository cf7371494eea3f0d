"""Kernels of grids whose groups have a scale and no offset: symmetric integers, and iq4_nl's levels."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpt54_convert.quantize.kernels.curved import curved_code, curved_level
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
    extremes_of_sixteen,
    halves,
    keep_first,
    reciprocal,
)
from gpt54_convert.quantize.kernels.jit import inlined, kernel
from gpt54_convert.quantize.kernels.lanes import (
    fma,
    load,
    magnitude,
    rint,
    select,
    splat,
    store,
    store_bytes,
)

# iq4_nl has no level 0: next to float16's smallest scales, a scale of 0 may be nearer.
_LITTLE = F32(2.0**-18)


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
def _peak(smallest: Lanes, largest: Lanes, form: Form) -> Lanes:
    """The element of greatest size, the negative one of two (its size only for `unsigned`)."""
    peak = select(splat(ZERO) - smallest < largest, largest, smallest)
    return magnitude(peak) if form.unsigned else peak


@inlined
def _nearest(y: Lanes, low: Lanes, high: Lanes, form: Form) -> Lanes:
    """The level nearest to y, both in units of the scale."""
    if form.curved is None:
        return clamp(rint(y), low, high)
    return curved_level(y)


@inlined
def _encode(groups: Groups, g: int, scale: Any, inverse: Any, form: Form, out: Coded) -> None:
    """Write the scale of group g and the codes of its elements; inverse: 1 / scale."""
    out.scale[g] = scale
    low, high, by = splat(F32(form.low)), splat(F32(form.high)), splat(inverse)
    length = groups.x.shape[1]
    start, whole = g * length, length - length % WIDTH
    for j in range(0, whole, WIDTH):
        y = load(groups.flat, start + j) * by
        if form.curved is None:
            store_bytes(out.codes, start + j, clamp(rint(y), low, high) - low)
        else:
            store_bytes(out.codes, start + j, curved_code(y))
    for j in range(whole, length):  # of integer grids only
        level = min(max(np.rint(groups.x[g, j] * inverse), F32(form.low)), F32(form.high))
        out.codes[start + j] = np.uint8(np.int32(level - F32(form.low)))


@kernel
def rtn_signed(groups: Groups, factor: Any, form: Form, out: Coded) -> None:
    """Plain rounding; a group's scale is its peak times `factor` (float32), rounded to float16."""
    spare, count = groups.spare, groups.x.shape[0]
    for first in range(0, count, WIDTH):
        some = min(WIDTH, count - first)
        smallest, largest = extremes_of_sixteen(groups, first, some)
        scales = halves(_peak(smallest, largest, form) * splat(factor))
        store(spare, 0, scales)
        store(spare, WIDTH, reciprocal(scales))
        for i in range(some):
            _encode(groups, first + i, spare[i], spare[WIDTH + i], form, out)


@inlined
def _refit(groups: Groups, at: tuple[int, int], scale: Lanes, form: Form) -> Lanes:
    """The scales of least squared error for the codes that belong to the scales given.

    at: the group, and that of its columns.
    """
    low, high, inverse = splat(F32(form.low)), splat(F32(form.high)), splat(ONE) / scale
    first, second = splat(ZERO), splat(ZERO)
    for j in range(groups.x.shape[1]):
        x, w = splat(groups.x[at[0], j]), splat(groups.w[at[1], j])
        level = _nearest(x * inverse, low, high, form)
        weighted = w * level
        first, second = fma(weighted, x, first), fma(weighted, level, second)
    return halves(first / second)


@inlined
def _error(groups: Groups, at: tuple[int, int], scale: Lanes, form: Form) -> Lanes:
    """Sum of w · (x - dequantized x)² of the group on each of the scales."""
    low, high, inverse = splat(F32(form.low)), splat(F32(form.high)), splat(ONE) / scale
    error = splat(ZERO)
    for j in range(groups.x.shape[1]):
        x, w = splat(groups.x[at[0], j]), splat(groups.w[at[1], j])
        missed = x - _nearest(x * inverse, low, high, form) * scale
        error = fma(w * missed, missed, error)
    return error


@inlined
def _weight_of(groups: Groups, at: tuple[int, int]) -> Any:
    """Sum of w · x², the error of a scale of 0."""
    square = ZERO
    for j in range(groups.x.shape[1]):
        square += groups.w[at[1], j] * groups.x[at[0], j] * groups.x[at[0], j]
    return square


@kernel
def search_signed(groups: Groups, ladder: Floats, refits: int, form: Form, out: Coded) -> None:
    """The best of ladder.size scales a group, each `refits` times refitted to its codes.

    ladder: float32, a multiple of sixteen factors on the peak; the first, plain rounding's, is not refitted.
    """
    spare = groups.spare
    for g in range(groups.x.shape[0]):
        smallest, largest = extremes(groups, g)
        peak, at = _peak(smallest, largest, form), (g, g % groups.w.shape[0])
        scale, error = ZERO, F32(np.inf)
        for start in range(0, ladder.size, WIDTH):
            plain = halves(peak * load(ladder, start))
            candidates = plain
            for _ in range(refits):
                candidates = keep_first(plain, _refit(groups, at, candidates, form), spare)
            errors = _error(groups, at, candidates, form)
            if start == 0:
                errors = keep_first(errors * splat(MARGIN), errors, spare)
            lowest, its_scale, _ = best(errors, candidates, candidates, spare)
            if lowest < error or start == 0:
                scale, error = its_scale, lowest
        if form.curved is not None and abs(scale) < _LITTLE and _weight_of(groups, at) < error:
            scale = ZERO
        _encode(groups, g, scale, ONE / scale if scale != ZERO else ZERO, form, out)
