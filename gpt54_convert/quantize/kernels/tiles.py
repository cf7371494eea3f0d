"""What both superblock kernels share: sixteen groups side by side, and arithmetic on their scales.

A tile is sixteen groups of a row, transposed, so that lane g of vector j holds element j of group g: one
superblock of sixteen groups of 16, or two of eight groups of 32.  A number of a whole superblock stands in
each of its lanes.  Tile arrays are flat float32 of 16 · group elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.kernels.jit import helper
from gpt54_convert.quantize.kernels.lanes import (
    eleven_bits,
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
    transpose,
    upper,
)

WIDTH = 16
SUPERBLOCK = 256
# Beyond what any type's largest float16 scale can reach, and still safe to square and sum in float32.
LARGEST = 1e9
# Less than any scale that can be stored; LARGEST / NOTHING is still finite.
NOTHING = 1e-28
# Float16's extremes: largest finite, smallest normal, smallest subnormal.
HALF_MAX, HALF_NORMAL, HALF_TINY = 65504.0, 2.0**-14, 2.0**-24

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Lanes = Any  # sixteen float32, known to Numba only


class Source(NamedTuple):
    """What is quantized: weight, flat; importance of the columns, the first 256 repeated at the end, or empty
    where all columns count alike.
    """

    weight: Floats
    importance: Floats


class Tile(NamedTuple):
    """Scratch: x and w are the transposed weights and importances, y the codes; spare holds 256 numbers."""

    x: Floats
    w: Floats
    y: Floats
    spare: Floats


class Moments(NamedTuple):
    """Of each group: sums of w, w·x, w·x², the least and greatest x; `bad` is not 0 where x is not finite."""

    w: Lanes
    wx: Lanes
    wxx: Lanes
    least: Lanes
    greatest: Lanes
    bad: Lanes


@helper
def new_tile(group: int) -> Tile:
    """Scratch for tiles of sixteen groups of `group` (16 or 32) elements."""
    size = WIDTH * group
    x, y, spare = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(SUPERBLOCK, np.float32)
    return Tile(x, np.ones(size, np.float32), y, spare)


@helper
def read_tile(source: Source, start: int, group: int, tile: Tile) -> Moments:
    """Fill tile.x and tile.w with the sixteen groups from element `start` on; clamps x to ±LARGEST."""
    for half in range(group // WIDTH):
        transpose(source.weight, start + WIDTH * half, group, tile.x, SUPERBLOCK * half)
    if source.importance.size:
        column = start % (source.importance.size - SUPERBLOCK)
        for half in range(group // WIDTH):
            transpose(source.importance, column + WIDTH * half, group, tile.w, SUPERBLOCK * half)
    zero, limit = splat(0.0), splat(LARGEST)
    weight, first, second, bad = zero, zero, zero, zero
    least, greatest = limit, zero - limit
    for j in range(group):
        x, w = load(tile.x, WIDTH * j), load(tile.w, WIDTH * j)
        bad = fma(x, zero, bad)
        x = clamp(x, zero - limit, limit)
        store(tile.x, WIDTH * j, x)
        weight, first, second = weight + w, fma(w, x, first), fma(w * x, x, second)
        least, greatest = lower(least, x), upper(greatest, x)
    return Moments(weight, first, second, least, greatest, bad)


@helper
def write_codes(tile: Tile, start: int, group: int, codes: Bytes) -> None:
    """Put the codes of tile.y back into the order of the row, codes[start : start + 16 group]."""
    for half in range(group // WIDTH):
        transpose(tile.y, SUPERBLOCK * half, WIDTH, tile.spare, 0)
        for g in range(WIDTH):
            store_bytes(codes, start + group * g + WIDTH * half, load(tile.spare, WIDTH * g))


@helper
def write_supers(values: Lanes, tile: Tile, start: int, group: int, out: Floats) -> None:
    """Write the number of each superblock of the tile that starts at element `start`."""
    store(tile.spare, 0, values)
    for i in range(WIDTH * group // SUPERBLOCK):
        out[start // SUPERBLOCK + i] = tile.spare[8 * i]


@helper
def any_bad(values: Lanes, tile: Tile) -> bool:
    """True where a lane is not 0 (NaN included)."""
    store(tile.spare, 0, values)
    bad = False
    for i in range(WIDTH):
        bad |= tile.spare[i] != 0
    return bad


@helper
def total(values: Lanes, group: int) -> Lanes:
    """The sum over each superblock, in each of its lanes (8 lanes for groups of 32, else 16)."""
    values = values + swap(values, 1)
    values = values + swap(values, 2)
    values = values + swap(values, 4)
    if group == WIDTH:
        values = values + swap(values, 8)
    return values


@helper
def greatest(values: Lanes, group: int) -> Lanes:
    """The greatest number of each superblock, in each of its lanes."""
    values = upper(values, swap(values, 1))
    values = upper(values, swap(values, 2))
    values = upper(values, swap(values, 4))
    if group == WIDTH:
        values = upper(values, swap(values, 8))
    return values


@helper
def clamp(x: Lanes, low: Lanes, high: Lanes) -> Lanes:
    """x held between `low` and `high`; `low` where x is NaN."""
    return lower(upper(x, low), high)


@helper
def reciprocal(x: Lanes) -> Lanes:
    """1 / x, and 0 where x is (next to) 0: a scale of zero makes codes of zero."""
    return select(splat(NOTHING) < magnitude(x), splat(1.0) / x, splat(0.0))


@helper
def to_half(x: Lanes) -> Lanes:
    """x rounded to the nearest float16, ties to even, as float32; saturates instead of overflowing."""
    subnormal = rint(x * splat(1 / HALF_TINY)) * splat(HALF_TINY)
    rounded = select(magnitude(x) < splat(HALF_NORMAL), subnormal, eleven_bits(x))
    return clamp(rounded, splat(-HALF_MAX), splat(HALF_MAX))


@helper
def super_scale(largest: Lanes, steps: Lanes) -> Lanes:
    """Float16 d with largest ≈ steps · d; the smallest float16 rather than 0 where largest is not 0.

    Else scales below 2^-25 · steps would vanish although their own code could still hold them.
    """
    scale = to_half(largest / steps)
    tiny = select(largest / steps < splat(0.0), splat(-HALF_TINY), splat(HALF_TINY))
    vanished = (magnitude(scale) <= splat(0.0)) & (splat(0.0) < magnitude(largest))
    return select(vanished, tiny, scale)
