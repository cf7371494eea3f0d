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
    swap,
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
def _refit(groups: Groups, at: tuple[int, int], scale: Lanes, form: Form) -> tuple[Lanes, Lanes]:
    """The scales of least squared error for the codes that belong to the scales given, and what they explain:
    Σ w x² less the error on these codes.  The error is less still where a new scale has nearer codes.

    at: the group, and that of its columns.
    """
    low, high, inverse = splat(F32(form.low)), splat(F32(form.high)), splat(ONE) / scale
    first, second = splat(ZERO), splat(ZERO)
    for j in range(groups.x.shape[1]):
        x, w = splat(groups.x[at[0], j]), splat(groups.w[at[1], j])
        level = _nearest(x * inverse, low, high, form)
        weighted = w * level
        first, second = fma(weighted, x, first), fma(weighted, level, second)
    fitted = halves(first / second)
    return fitted, fitted * (first + first - fitted * second)


@inlined
def _error(groups: Groups, at: tuple[int, int], scale: Any, form: Form) -> Any:
    """Sum of w · (x - dequantized x)² of the group on one scale, sixteen elements at a time."""
    inverse = ONE / scale if scale != ZERO else ZERO
    low, high, by, back = splat(F32(form.low)), splat(F32(form.high)), splat(inverse), splat(scale)
    length, weights = groups.x.shape[1], groups.w[at[1]]
    start, whole, errors = at[0] * length, length - length % WIDTH, splat(ZERO)
    for j in range(0, whole, WIDTH):
        x = load(groups.flat, start + j)
        missed = x - _nearest(x * by, low, high, form) * back
        errors = fma(load(weights, j) * missed, missed, errors)
    errors = errors + swap(errors, 8)
    errors = errors + swap(errors, 4)
    errors = errors + swap(errors, 2)
    store(groups.spare, 0, errors + swap(errors, 1))
    error = groups.spare[0]
    for j in range(whole, length):  # of integer grids only
        x = groups.x[at[0], j]
        level = min(max(np.rint(x * inverse), F32(form.low)), F32(form.high))
        error += weights[j] * (x - level * scale) * (x - level * scale)
    return error


@kernel
def search_signed(groups: Groups, ladder: Floats, refits: int, form: Form, out: Coded) -> None:
    """The best of ladder.size scales a group, each `refits` times refitted to its codes.

    ladder: float32, a multiple of sixteen factors on the peak; the first is plain rounding's, which stays
    unless the best of the others has less error by more than the noise of float32 sums.
    """
    spare = groups.spare
    for g in range(groups.x.shape[0]):
        smallest, largest = extremes(groups, g)
        peak, at = _peak(smallest, largest, form), (g, g % groups.w.shape[0])
        store(spare, 0, halves(peak * load(ladder, 0)))
        plain = spare[0]
        scale, least = plain, F32(np.inf)
        for start in range(0, ladder.size, WIDTH):
            candidates = halves(peak * load(ladder, start))
            explained = splat(ZERO)
            for _ in range(refits):
                candidates, explained = _refit(groups, at, candidates, form)
            left = splat(ZERO) - explained
            if start == 0:  # lane 0 must hold a number, for others to be compared with
                left = keep_first(splat(F32(np.inf)), left, spare)
            lowest, its_scale, _ = best(left, candidates, candidates, spare)
            if lowest < least:
                scale, least = its_scale, lowest
        error = _error(groups, at, plain, form)
        found = _error(groups, at, scale, form)
        if not found < error * MARGIN:
            scale, found = plain, error
        if form.curved is not None and abs(scale) < _LITTLE and _error(groups, at, ZERO, form) < found:
            scale = ZERO
        _encode(groups, g, scale, ONE / scale if scale != ZERO else ZERO, form, out)
