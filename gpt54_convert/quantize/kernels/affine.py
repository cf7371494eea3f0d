"""Kernels of grids whose groups have a scale and an offset: asymmetric integers, q4_1 and q5_1.

A value is code · scale + offset.  The offset is a float16 number of its own, or -zero · scale with an integer
zero among the codes.
"""

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
    extremes_of_sixteen,
    halves,
    keep_first,
    reciprocal,
)
from gpt54_convert.quantize.kernels.jit import inlined, kernel
from gpt54_convert.quantize.kernels.lanes import (
    fma,
    load,
    lower,
    rint,
    select,
    splat,
    store,
    store_bytes,
    upper,
)


class Form(NamedTuple):
    """A grid's numbers: its greatest code, and 1 where the offset is an integer number of scales (else 0)."""

    top: float
    integer: int


@inlined
def _with_zero(smallest: Lanes, largest: Lanes, form: Form) -> tuple[Lanes, Lanes]:
    """The range of a group: an integer zero asks for 0 to lie in it."""
    if form.integer:
        return lower(smallest, splat(ZERO)), upper(largest, splat(ZERO))
    return smallest, largest


@inlined
def _plain(smallest: Lanes, largest: Lanes, form: Form) -> tuple[Lanes, Lanes]:
    """Scales and offsets of plain rounding; what float16 does to an offset, the scale makes good."""
    zero, half, top = splat(ZERO), splat(F32(0.5)), splat(F32(form.top))
    if form.integer:
        reach = largest * half - smallest * half  # half of the range, which itself may overflow
        scale = halves(reach * (splat(F32(2)) / top))
        below = select(zero < reach, (zero - smallest * half) / reach, zero)
        return scale, zero - scale * rint(below * top)
    offset = halves(smallest)
    reach = upper(largest * half - offset * half, zero)
    return halves(reach * (splat(F32(2)) / top)), offset


@inlined
def _encode(groups: Groups, g: int, found: tuple[Any, Any, Any], form: Form, out: Coded) -> None:
    """Write the scale, the offset (or the integer zero) and the codes of group g.

    found: its scale, 1 / scale, and offset.
    """
    scale, inverse, offset = found
    zero, top, by, shift = splat(ZERO), splat(F32(form.top)), splat(inverse), splat(offset)
    out.scale[g] = scale
    out.offset[g] = np.rint(-offset * inverse) if form.integer else offset
    length = groups.x.shape[1]
    start, whole = g * length, length - length % WIDTH
    for j in range(0, whole, WIDTH):
        code = clamp(rint((load(groups.flat, start + j) - shift) * by), zero, top)
        store_bytes(out.codes, start + j, code)
    for j in range(whole, length):
        y = np.rint((groups.x[g, j] - offset) * inverse)
        out.codes[start + j] = np.uint8(np.int32(min(max(y, ZERO), F32(form.top))))


@kernel
def rtn_affine(groups: Groups, form: Form, out: Coded) -> None:
    """Plain rounding between the smallest and the largest element of each group."""
    spare, count = groups.spare, groups.x.shape[0]
    for first in range(0, count, WIDTH):
        some = min(WIDTH, count - first)
        smallest, largest = extremes_of_sixteen(groups, first, some)
        smallest, largest = _with_zero(smallest, largest, form)
        scales, offsets = _plain(smallest, largest, form)
        store(spare, 0, scales)
        store(spare, WIDTH, reciprocal(scales))
        store(spare, 2 * WIDTH, offsets)
        for i in range(some):
            found = spare[i], spare[WIDTH + i], spare[2 * WIDTH + i]
            _encode(groups, first + i, found, form, out)


@inlined
def _refit(
    groups: Groups, at: tuple[int, int], scale: Lanes, offset: Lanes, form: Form
) -> tuple[Lanes, Lanes]:
    """Scales and offsets of least squared error for the codes that belong to those given.

    at: the group and its columns' group.  Sums are taken around a middle of the group, lest they cancel.
    """
    g, column = at
    zero, one, top = splat(ZERO), splat(ONE), splat(F32(form.top))
    inverse, middle = one / scale, groups.x[g, 0]
    sum_w, sum_x = ZERO, ZERO
    sum_c, sum_cc, sum_cx = zero, zero, zero
    for j in range(groups.x.shape[1]):
        x, w = groups.x[g, j], groups.w[column, j]
        code = clamp(rint((splat(x) - offset) * inverse), zero, top)
        x -= middle
        sum_w, sum_x = sum_w + w, sum_x + w * x
        weighted = splat(w) * code
        sum_c, sum_cc, sum_cx = sum_c + weighted, fma(weighted, code, sum_cc), fma(weighted, splat(x), sum_cx)
    weight, total, around = splat(sum_w), splat(sum_x), splat(middle)
    scale = (weight * sum_cx - sum_c * total) / (weight * sum_cc - sum_c * sum_c)
    offset = around + (total - scale * sum_c) / weight
    if form.integer:
        point = clamp(rint((zero - offset) / scale), zero, top)
        square = sum_cc - point * (sum_c + sum_c) + point * point * weight
        scale = halves((sum_cx + around * sum_c - point * (total + around * weight)) / square)
        return scale, zero - point * scale
    offset = halves(offset)
    return halves((sum_cx - (offset - around) * sum_c) / sum_cc), offset


@inlined
def _error(groups: Groups, at: tuple[int, int], scale: Lanes, offset: Lanes, form: Form) -> Lanes:
    """Sum of w · (x - dequantized x)² of the group at each scale and offset."""
    g, column = at
    zero, top = splat(ZERO), splat(F32(form.top))
    inverse, error = splat(ONE) / scale, zero
    for j in range(groups.x.shape[1]):
        shifted, w = splat(groups.x[g, j]) - offset, splat(groups.w[column, j])
        missed = shifted - clamp(rint(shifted * inverse), zero, top) * scale
        error = fma(w * missed, missed, error)
    return error


@inlined
def _candidates(low: Lanes, high: Lanes, cuts: tuple[Lanes, Lanes], form: Form) -> tuple[Lanes, Lanes]:
    """Scales and offsets where `cuts`, as parts of the range, are taken off its lower and upper end."""
    low, high = low + (high - low) * cuts[0], high - (high - low) * cuts[1]
    top, zero = splat(F32(form.top)), splat(ZERO)
    scale = halves((high - low) / top)
    if form.integer:
        return scale, zero - scale * clamp(rint((zero - low) / scale), zero, top)
    return scale, halves(low)


@kernel
def search_affine(groups: Groups, ladder: Floats, refits: int, form: Form, out: Coded) -> None:
    """The best of ladder.size / 2 pairs of scale and offset a group, each refitted `refits` times.

    ladder: float32, the parts of the range that each candidate cuts off its lower end, then those off its
    upper end; a multiple of sixteen each.  Those of the first are not read: plain rounding stands there.
    """
    count = ladder.size // 2
    for g in range(groups.x.shape[0]):
        smallest, largest = extremes(groups, g)
        low, high = _with_zero(smallest, largest, form)
        plain, at = _plain(low, high, form), (g, g % groups.w.shape[0])
        scale, offset, error = ZERO, ZERO, F32(np.inf)
        for start in range(0, count, WIDTH):
            cuts = (load(ladder, start), load(ladder, count + start))
            scales, offsets = _candidates(low, high, cuts, form)
            for _ in range(refits):
                scales, offsets = _refit(groups, at, scales, offsets, form)
            if start == 0:
                scales = keep_first(plain[0], scales, groups.spare)
                offsets = keep_first(plain[1], offsets, groups.spare)
            errors = _error(groups, at, scales, offsets, form)
            if start == 0:
                errors = keep_first(errors * splat(MARGIN), errors, groups.spare)
            lowest, its_scale, its_offset = best(errors, scales, offsets, groups.spare)
            if lowest < error or start == 0:
                scale, offset, error = its_scale, its_offset, lowest
        inverse = ONE / scale if scale != ZERO else ZERO
        _encode(groups, g, (scale, inverse, offset), form, out)
