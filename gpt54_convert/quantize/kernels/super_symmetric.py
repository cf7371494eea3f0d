"""Kernels of the superblock grids without an offset: q3_k, q6_k, iq4_xs.

An element is a · l with a level l of a fixed table, and of its group a = d · s, s a signed whole number,
d a float16 number of the superblock.  The loss is Σ w (x − a l)².  For levels held fixed it is a quadratic in
a with the coefficients Σ w x², Σ w x l and Σ w l², so one pass over a group both finds the best a and prices
any other.  Levels reach further down than up (−4 … 3), so the sign of a matters and both are tried.
"""

from __future__ import annotations

from typing import NamedTuple

from gpt54_convert.quantize.kernels.jit import helper, kernel
from gpt54_convert.quantize.kernels.lanes import fma, load, magnitude, rint, select, splat, store, store_bytes
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
from gpt54_convert.quantize.qtensor import IQ4_LEVELS

HUGE = 3e38
# Half-way points between iq4_xs's levels: the code of y is the count of those below y.
THRESHOLDS = tuple(((IQ4_LEVELS[1:] + IQ4_LEVELS[:-1]) / 2).tolist())
# Polynomials fitted to IQ4_LEVELS, highest power first.  LEVEL of a code, rounded, is its level exactly.
# CODE of y, rounded, is the nearest code but for 2 % of all y, close to a threshold: good enough to propose
# scales in half the time, never used for what is stored.
LEVEL = (0.00158604, 0.0310864, -1.37193, 24.1738, -126.567)
CODE = (8.1866e-11, -6.9163e-10, -2.7435e-06, 1.951e-06, 0.085292, 7.8784)


class Form(NamedTuple):
    """group: its elements, 16 or 32; low, high: the ends of the levels; least, most: of the codes of a scale;
    base: what is added to that code when stored; curved: True for iq4_xs's levels, None for whole numbers
    (None rather than False, so that Numba compiles the two apart).
    """

    group: int
    low: float
    high: float
    least: float
    most: float
    base: float
    curved: bool | None


class Output(NamedTuple):
    """Flat arrays to fill: codes; the scale's code of each group; the scale of each superblock."""

    codes: Bytes
    scale: Bytes
    super_scale: Floats


class Sums(NamedTuple):
    """Of each group: Σ w l², Σ w x l."""

    square: Lanes
    product: Lanes


class Stored(NamedTuple):
    """What a file holds of a superblock: s of each group, and d."""

    s: Lanes
    d: Lanes


@helper
def _level_of(code: Lanes) -> Lanes:
    """The level of an iq4_xs code, exactly."""
    y = splat(LEVEL[0])
    for i in range(1, len(LEVEL)):
        y = fma(y, code, splat(LEVEL[i]))
    return rint(y)


@helper
def _proposed(y: Lanes, form: Form) -> Lanes:
    """The level next to y; of iq4_xs's levels sometimes only the second next."""
    y = clamp(y, splat(form.low), splat(form.high))
    if form.curved is None:
        return rint(y)
    code = splat(CODE[0])
    for i in range(1, len(CODE)):
        code = fma(code, y, splat(CODE[i]))
    return _level_of(rint(code))


@helper
def _nearest(y: Lanes, form: Form) -> tuple[Lanes, Lanes]:
    """The code next to y, and its level."""
    if form.curved is None:
        level = rint(clamp(y, splat(form.low), splat(form.high)))
        return level - splat(form.low), level
    code = splat(0.0)
    for i in range(len(THRESHOLDS)):
        code = select(splat(THRESHOLDS[i]) < y, code + splat(1.0), code)
    return code, _level_of(code)


@helper
def _sums(tile: Tile, form: Form, a: Lanes) -> Sums:
    """The sums of the levels next to the weights under the scale a."""
    square, product, inverse = splat(0.0), splat(0.0), reciprocal(a)
    for j in range(form.group):
        x, w = load(tile.x, WIDTH * j), load(tile.w, WIDTH * j)
        level = _proposed(x * inverse, form)
        weighted = w * level
        square, product = fma(weighted, level, square), fma(weighted, x, product)
    return Sums(square, product)


@helper
def _encode(tile: Tile, form: Form, stored: Stored) -> Lanes:
    """Write the nearest codes to tile.y; the loss of each superblock, computed as a reader dequantizes."""
    a = stored.d * stored.s
    inverse, loss = reciprocal(a), splat(0.0)
    for j in range(form.group):
        x, w = load(tile.x, WIDTH * j), load(tile.w, WIDTH * j)
        code, level = _nearest(x * inverse, form)
        store(tile.y, WIDTH * j, code)
        rest = a * level - x
        loss = fma(w * rest, rest, loss)
    return total(loss, form.group)


@helper
def _store(a: Lanes, form: Form) -> Stored:
    """The storable scales next to the wished a of each group; the largest in magnitude gets the code `least`,
    which reaches one step further than `most`.
    """
    zero, size = splat(0.0), greatest(magnitude(a), form.group)
    largest = select(size <= greatest(a, form.group), size, zero - size)
    d = super_scale(largest, splat(form.least))
    wished = select(zero < magnitude(d), a / d, zero)
    return Stored(clamp(rint(wished), splat(form.least), splat(form.most)), d)


@helper
def _extreme(form: Form, moments: Moments) -> Lanes:
    """The scale under which the weight largest in magnitude takes the lowest level."""
    negative = moments.greatest < splat(0.0) - moments.least
    return select(negative, moments.least, moments.greatest) / splat(form.low)


@helper
def _coarse(tile: Tile, form: Form, moments: Moments, candidates: Floats) -> Lanes:
    """The best a of each group among the fits to the levels that extreme · candidates[i] propose."""
    zero, extreme = splat(0.0), _extreme(form, moments)
    best, best_a = splat(-HUGE), extreme
    for i in range(candidates.size):
        sums = _sums(tile, form, extreme * splat(candidates[i]))
        a = sums.product * reciprocal(sums.square)
        explained = a * sums.product  # Σ w x² minus the loss
        better = (best < explained) & (zero < magnitude(a))
        best, best_a = select(better, explained, best), select(better, a, best_a)
    return best_a


@helper
def _fine(tile: Tile, form: Form, start: Stored, candidates: Floats) -> Stored:
    """The best storable s of each group, d given, among the fits to the levels of d · s · candidates[i]."""
    s, d = start
    at, per_d, best = d * s, reciprocal(d), splat(HUGE)
    for i in range(candidates.size):
        sums = _sums(tile, form, at * splat(candidates[i]))
        near = rint(sums.product * reciprocal(sums.square) * per_d)
        near = clamp(near, splat(form.least), splat(form.most))
        a = near * d
        loss = a * (a * sums.square - splat(2.0) * sums.product)  # less Σ w x², the same for all
        better = loss < best
        best, s = select(better, loss, best), select(better, near, s)
    return Stored(s, d)


@helper
def _refit(tile: Tile, form: Form, start: Stored) -> Stored:
    """Least-squares d of each superblock for its levels and s, if better once in float16."""
    s, d = start
    sums = _sums(tile, form, d * s)
    square, product = total(s * s * sums.square, form.group), total(s * sums.product, form.group)
    new = to_half(product * reciprocal(square))
    twice = splat(2.0) * product
    return Stored(s, select(new * (new * square - twice) < d * (d * square - twice), new, d))


@helper
def _search(tile: Tile, form: Form, moments: Moments, coarse: Floats, fine: Floats) -> tuple[Stored, bool]:
    """The storable scales with the least loss found; never more loss than plain rounding.

    Also whether tile.y holds their codes already: the trial is encoded last, and nearly always wins.
    """
    best = _store(_extreme(form, moments), form)
    loss = _encode(tile, form, best)
    trial = _fine(tile, form, _store(_coarse(tile, form, moments, coarse), form), fine)
    trial = _refit(tile, form, trial)
    wins = _encode(tile, form, trial) < loss
    found = Stored(select(wins, trial.s, best.s), select(wins, trial.d, best.d))
    return found, not any_bad(select(wins, splat(0.0), splat(1.0)), tile)


@helper
def _write(tile: Tile, form: Form, stored: Stored, start: int, out: Output) -> None:
    """Put the codes of tile.y and the scales that they were made under into the result."""
    write_codes(tile, start, form.group, out.codes)
    store_bytes(out.scale, start // form.group, stored.s + splat(form.base))
    write_supers(stored.d, tile, start, form.group, out.super_scale)


@kernel
def rtn_symmetric(source: Source, form: Form, out: Output) -> bool:
    """Plain rounding; False where it stopped at a number that is not finite."""
    tile = new_tile(form.group)
    for start in range(0, source.weight.size, WIDTH * form.group):
        moments = read_tile(source, start, form.group, tile)
        if any_bad(moments.bad, tile):
            return False
        stored = _store(_extreme(form, moments), form)
        _encode(tile, form, stored)
        _write(tile, form, stored, start, out)
    return True


@kernel
def search_symmetric(source: Source, form: Form, coarse: Floats, fine: Floats, out: Output) -> bool:
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
