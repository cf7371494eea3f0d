"""Kernels of the superblock grids with an offset: q2_k, q4_k, q5_k.

An element is a · l − b with a code l in 0 … top, and of its group a = d · s and b = dmin · m, s and m whole
numbers 0 … steps, d and dmin float16 numbers of the superblock.  The loss is Σ w (x − (a l − b))².

For codes held fixed the loss is a quadratic in a and b whose coefficients are the sums Σ w, Σ w x, Σ w x²,
Σ w l, Σ w l², Σ w x l; so one pass over a group both finds the best a and b for its codes (weighted least
squares) and prices any other a and b, without a second pass.  The search draws codes from many (a, b) and
prices what can be stored.
"""

from __future__ import annotations

from typing import NamedTuple

from gpt54_convert.quantize.kernels.jit import helper, kernel
from gpt54_convert.quantize.kernels.lanes import fma, load, lower, rint, select, splat, store, store_bytes
from gpt54_convert.quantize.kernels.tiles import (
    WIDTH,
    Bytes,
    Floats,
    Lanes,
    Moments,
    Source,
    Tile,
    any_bad,
    clamp,
    greatest,
    new_tile,
    read_tile,
    reciprocal,
    super_scale,
    to_half,
    total,
    write_codes,
    write_supers,
)

HUGE = 3e38


class Form(NamedTuple):
    """group: its elements, 16 or 32; top: the largest code; steps: the largest code of a scale."""

    group: int
    top: float
    steps: float


class Output(NamedTuple):
    """Flat arrays to fill: codes; scale and offset of each group; scale and offset of each superblock."""

    codes: Bytes
    scale: Bytes
    offset: Bytes
    super_scale: Floats
    super_offset: Floats


class Sums(NamedTuple):
    """Of each group: Σ w l, Σ w l², Σ w x l."""

    level: Lanes
    square: Lanes
    product: Lanes


class Stored(NamedTuple):
    """What a file holds of a superblock: s and m of each group, d and dmin."""

    s: Lanes
    m: Lanes
    d: Lanes
    dmin: Lanes


@helper
def _sums(tile: Tile, form: Form, a: Lanes, b: Lanes) -> Sums:
    """The sums of the codes nearest to the weights under scale a and offset −b."""
    zero, top, inverse = splat(0.0), splat(form.top), reciprocal(a)
    bias = b * inverse
    level, square, product = zero, zero, zero
    for j in range(form.group):
        x, w = load(tile.x, WIDTH * j), load(tile.w, WIDTH * j)
        code = clamp(rint(fma(x, inverse, bias)), zero, top)
        weighted = w * code
        level, square, product = level + weighted, fma(weighted, code, square), fma(weighted, x, product)
    return Sums(level, square, product)


@helper
def _encode(tile: Tile, form: Form, stored: Stored) -> Lanes:
    """Write the nearest codes to tile.y; the loss of each superblock, computed as a reader dequantizes."""
    zero, top = splat(0.0), splat(form.top)
    a, b = stored.d * stored.s, stored.dmin * stored.m
    inverse, loss = reciprocal(a), zero
    for j in range(form.group):
        x, w = load(tile.x, WIDTH * j), load(tile.w, WIDTH * j)
        code = clamp(rint((x + b) * inverse), zero, top)
        store(tile.y, WIDTH * j, code)
        rest = (a * code - b) - x
        loss = fma(w * rest, rest, loss)
    return total(loss, form.group)


@helper
def _store(a: Lanes, b: Lanes, form: Form) -> Stored:
    """The storable scales next to the wished a and b of each group."""
    zero, steps = splat(0.0), splat(form.steps)
    d = super_scale(greatest(a, form.group), steps)
    dmin = super_scale(greatest(b, form.group), steps)
    s = lower(rint(select(zero < d, a / d, zero)), steps)
    m = lower(rint(select(zero < dmin, b / dmin, zero)), steps)
    return Stored(s, m, d, dmin)


@helper
def _fit(moments: Moments, sums: Sums) -> tuple[Lanes, Lanes]:
    """Least-squares a and b for fixed codes; b = 0 where the free solution would be negative, or where all
    codes are equal (up to rounding errors), which leaves a and b undetermined.
    """
    zero, both = splat(0.0), moments.w * sums.square
    b = sums.level * sums.product - sums.square * moments.wx
    determinant = both - sums.level * sums.level
    pinned = (b < zero) | (determinant < splat(4e-6) * both)
    inverse = reciprocal(select(pinned, sums.square, determinant))
    a = select(pinned, sums.product, moments.w * sums.product - moments.wx * sums.level)
    return a * inverse, select(pinned, zero, b * inverse)


@helper
def _coarse(tile: Tile, form: Form, moments: Moments, candidates: Floats) -> tuple[Lanes, Lanes]:
    """The best a and b of each group among the fits to the codes that `candidates` draw.

    A candidate (factor, shift) draws codes with a = factor · range / top and b moved by shift · a.
    """
    zero = splat(0.0)
    low = lower(moments.least, zero)
    wide = (moments.greatest - low) / splat(form.top)
    best, best_a, best_b = splat(-HUGE), wide, zero - low
    for i in range(0, candidates.size, 2):
        trial = wide * splat(candidates[i])
        sums = _sums(tile, form, trial, wide * splat(candidates[i + 1]) - low)
        a, b = _fit(moments, sums)
        explained = a * sums.product - b * moments.wx  # Σ w x² minus the loss
        better = (best < explained) & (zero < a)
        best, best_a = select(better, explained, best), select(better, a, best_a)
        best_b = select(better, b, best_b)
    return best_a, best_b


@helper
def _fine(tile: Tile, form: Form, moments: Moments, start: Stored, candidates: Floats) -> Stored:
    """The best storable s and m of each group, d and dmin given, among the fits to the candidates' codes."""
    zero, one, two, steps = splat(0.0), splat(1.0), splat(2.0), splat(form.steps)
    s, m, d, dmin = start
    at_a, at_b = d * s, dmin * m
    per_d, per_dmin, per_weight = reciprocal(d), reciprocal(dmin), reciprocal(moments.w)
    best = splat(HUGE)
    for i in range(0, candidates.size, 2):
        sums = _sums(tile, form, at_a * splat(candidates[i]), at_b + at_a * splat(candidates[i + 1]))
        wished, _ = _fit(moments, sums)
        trial_s = rint(wished * per_d) - one
        for _ in range(3):  # m follows from s: a neighbouring s may leave m a smaller rounding error
            near_s = clamp(trial_s, zero, steps)
            a = near_s * d
            near_m = clamp(rint((a * sums.level - moments.wx) * per_weight * per_dmin), zero, steps)
            b = near_m * dmin
            loss = moments.wxx + a * (a * sums.square - two * (sums.product + b * sums.level))
            loss = loss + b * (b * moments.w + two * moments.wx)
            better = loss < best
            best, s = select(better, loss, best), select(better, near_s, s)
            m = select(better, near_m, m)
            trial_s = trial_s + one
    return Stored(s, m, d, dmin)


@helper
def _refit(tile: Tile, form: Form, moments: Moments, start: Stored) -> Stored:
    """Least-squares d and dmin of each superblock for its codes, s and m, if better once in float16."""
    s, m, d, dmin = start
    zero, two, group = splat(0.0), splat(2.0), form.group
    sums = _sums(tile, form, d * s, dmin * m)
    ss, sm = total(s * s * sums.square, group), total(s * m * sums.level, group)
    mm = total(m * m * moments.w, group)
    sx, mx = total(s * sums.product, group), total(m * moments.wx, group)
    determinant = ss * mm - sm * sm
    # Nearly parallel: d and dmin cannot be told apart, so dmin stays.
    free = splat(1e-6) * ss * mm < determinant
    inverse = reciprocal(determinant)
    new_dmin = to_half(select(free, (sm * sx - ss * mx) * inverse, dmin))
    new_d = to_half(select(free, (mm * sx - sm * mx) * inverse, (sx + sm * dmin) * reciprocal(ss)))
    before = d * (d * ss - two * (dmin * sm + sx)) + dmin * (dmin * mm + two * mx)
    after = new_d * (new_d * ss - two * (new_dmin * sm + sx)) + new_dmin * (new_dmin * mm + two * mx)
    wins = (after < before) & (zero < new_d) & (zero <= new_dmin)
    return Stored(s, m, select(wins, new_d, d), select(wins, new_dmin, dmin))


@helper
def _round(form: Form, moments: Moments) -> Stored:
    """Plain rounding: the least and greatest weight of each group (and 0) become the ends of its range."""
    low = lower(moments.least, splat(0.0))
    return _store((moments.greatest - low) / splat(form.top), splat(0.0) - low, form)


@helper
def _search(tile: Tile, form: Form, moments: Moments, coarse: Floats, fine: Floats) -> tuple[Stored, bool]:
    """The storable scales with the least loss found; never more loss than plain rounding.

    Also whether tile.y holds their codes already: the trial is encoded last, and nearly always wins.
    """
    best = _round(form, moments)
    loss = _encode(tile, form, best)
    a, b = _coarse(tile, form, moments, coarse)
    trial = _fine(tile, form, moments, _store(a, b, form), fine)
    trial = _refit(tile, form, moments, trial)
    wins = _encode(tile, form, trial) < loss
    s, m = select(wins, trial.s, best.s), select(wins, trial.m, best.m)
    found = Stored(s, m, select(wins, trial.d, best.d), select(wins, trial.dmin, best.dmin))
    return found, not any_bad(select(wins, splat(0.0), splat(1.0)), tile)


@helper
def _write(tile: Tile, form: Form, stored: Stored, start: int, out: Output) -> None:
    """Put the codes of tile.y and the scales that they were made under into the result."""
    write_codes(tile, start, form.group, out.codes)
    store_bytes(out.scale, start // form.group, stored.s)
    store_bytes(out.offset, start // form.group, stored.m)
    write_supers(stored.d, tile, start, form.group, out.super_scale)
    write_supers(stored.dmin, tile, start, form.group, out.super_offset)


@kernel
def rtn_offset(source: Source, form: Form, out: Output) -> bool:
    """Plain rounding; False where it stopped at a number that is not finite."""
    tile = new_tile(form.group)
    for start in range(0, source.weight.size, WIDTH * form.group):
        moments = read_tile(source, start, form.group, tile)
        if any_bad(moments.bad, tile):
            return False
        stored = _round(form, moments)
        _encode(tile, form, stored)
        _write(tile, form, stored, start, out)
    return True


@kernel
def search_offset(source: Source, form: Form, coarse: Floats, fine: Floats, out: Output) -> bool:
    """The scale search; False where it stopped at a number that is not finite."""
    tile = new_tile(form.group)
    for start in range(0, source.weight.size, WIDTH * form.group):
        moments = read_tile(source, start, form.group, tile)
        if any_bad(moments.bad, tile):
            return False
        stored, encoded = _search(tile, form, moments, coarse, fine)
        if not encoded:
            _encode(tile, form, stored)
        _write(tile, form, stored, start, out)
    return True
