"""Which scales a search tries: few, but within some parts in a thousand of the least error possible.

Found by trying spans and counts against hundreds of scales a group: on Gaussian, Student-t and Laplace
weights, in groups of 32 to 1024, with and without importances spread over several powers of ten.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.grids import INT, Grid
from gpt54_convert.quantize.kernels.groups import WIDTH

LONG = 256


class Ladder(NamedTuple):
    """factors: float32, the ladder of `search_signed` or `search_affine`; refits: least-squares steps."""

    factors: NDArray[np.float32]
    refits: int


class _Span(NamedTuple):
    """Levels on which the peak is tried, in units of the outermost one: `tries` from `low` to `high`, where
    `negative` of them have the other sign and go from `other_low` to `other_high`."""

    tries: int
    refits: int
    low: float
    high: float
    negative: int = 0
    other_low: float = 0
    other_high: float = 0


class _Cuts(NamedTuple):
    """Ranges that are tried: `shrinks` of them lose parts `low` to `high` of their width (negative: gain),
    each at `shifts` places up to half of `shift` off the middle."""

    shrinks: int
    shifts: int
    refits: int
    low: float
    high: float
    shift: float = 0


# By bits: without importances, with them, and for long groups, whose best scale may clip the outermost
# elements far below the peak.
_PLAIN = {
    2: _Span(16, 2, 0.7, 1.7, 4, 0.8, 1.6),
    3: _Span(16, 1, 0.9, 1.7, 4, 0.8, 1.6),
    4: _Span(16, 1, 0.85, 1.3),
    5: _Span(16, 1, 0.85, 1.12, 2, 0.8, 1.0),
    6: _Span(16, 1, 0.85, 1.02),
    7: _Span(16, 1, 0.9, 1.01),
    8: _Span(16, 1, 0.92, 1.01),
}
_WEIGHTED = {
    2: _Span(16, 2, 0.7, 1.7, 6, 0.8, 1.6),
    3: _Span(16, 2, 0.9, 1.7, 6, 0.8, 1.6),
    4: _Span(16, 2, 0.9, 1.7, 4, 0.8, 1.6),
    5: _Span(16, 2, 0.7, 1.3, 4, 0.9, 1.1),
    6: _Span(16, 2, 0.75, 1.12),
    7: _Span(32, 1, 0.8, 1.06),
    8: _Span(32, 1, 0.85, 1.02),
}
_LONG = {
    2: _Span(48, 1, 0.9, 5.0, 12, 0.8, 5.0),
    3: _Span(48, 1, 0.9, 5.0, 12, 0.8, 5.0),
    4: _Span(48, 1, 0.9, 4.5),
    5: _Span(48, 1, 0.9, 3.0),
    6: _Span(48, 1, 0.9, 2.2),
    7: _Span(48, 1, 0.9, 2.0),
    8: _Span(48, 1, 0.9, 1.8),
}
_CURVED = _Span(16, 1, 0.8, 1.1, 6, 0.8, 1.1)
_CURVED_WEIGHTED = _Span(16, 2, 0.8, 1.3, 6, 0.7, 1.3)

# q4_1 and q5_1, whose offsets are free; then integer zeros.
_FREE = {4: _Cuts(4, 8, 1, -0.1, 0.05, 0.06), 5: _Cuts(8, 4, 1, -0.1, 0.05, 0.03)}
_FREE_WEIGHTED = {4: _Cuts(4, 8, 2, -0.1, 0.15, 0.1), 5: _Cuts(4, 8, 2, -0.1, 0.05, 0.06)}
_ZERO = {
    2: _Cuts(8, 2, 1, -0.02, 0.5, 0.2),
    3: _Cuts(8, 2, 1, -0.06, 0.35, 0.1),
    4: _Cuts(8, 2, 1, -0.1, 0.15, 0.03),
    5: _Cuts(8, 2, 1, -0.1, 0.05, 0.03),
    6: _Cuts(32, 1, 1, -0.15, 0.03),
    7: _Cuts(32, 1, 1, -0.15, 0.02),
    8: _Cuts(32, 1, 1, -0.15, 0.01),
}
_ZERO_WEIGHTED = {
    2: _Cuts(8, 4, 1, -0.02, 0.5, 0.3),
    3: _Cuts(8, 4, 1, -0.06, 0.5, 0.3),
    4: _Cuts(8, 4, 1, -0.1, 0.35, 0.2),
    5: _Cuts(8, 4, 1, -0.1, 0.15, 0.1),
    6: _Cuts(16, 2, 1, -0.15, 0.06, 0.03),
    7: _Cuts(32, 1, 1, -0.15, 0.02),
    8: _Cuts(32, 1, 1, -0.15, 0.01),
}
_ZERO_LONG = {bits: _Cuts(16, 4, 1, -0.03, 0.7, 0.2) for bits in (2, 3, 4, 5)}
_ZERO_LONG |= {bits: _Cuts(32, 2, 1, -0.03, 0.3, 0.03) for bits in (6, 7, 8)}


@lru_cache
def signed(grid: Grid, weighted: bool) -> Ladder:
    """Factors on a group's peak for a grid without offsets; the first is that of plain rounding."""
    if grid.name == "iq4_nl":
        return _factors(_CURVED_WEIGHTED if weighted else _CURVED, -127.0, np.linspace)
    outermost = 127.0 if grid.bits == 8 else -float(1 << (grid.bits - 1))
    if _long(grid):
        return _factors(_LONG[grid.bits], outermost, np.geomspace)
    return _factors((_WEIGHTED if weighted else _PLAIN)[grid.bits], outermost, np.linspace)


@lru_cache
def affine(grid: Grid, weighted: bool) -> Ladder:
    """Parts of the range to cut off its lower end, then off its upper end; the first of each is not read."""
    if grid.kind != INT:
        cuts = (_FREE_WEIGHTED if weighted else _FREE)[grid.bits]
    elif _long(grid):
        cuts = _ZERO_LONG[grid.bits]
    else:
        cuts = (_ZERO_WEIGHTED if weighted else _ZERO)[grid.bits]
    whole = np.linspace(cuts.low, cuts.high, cuts.shrinks)
    shift = np.linspace(-cuts.shift, cuts.shift, cuts.shifts) if cuts.shifts > 1 else np.zeros(1)
    shrinks, shifts = np.meshgrid(whole, shift)
    ends = np.stack([shrinks + shifts, shrinks - shifts]).reshape(2, -1) / 2
    first = int(np.abs(ends).sum(axis=0).argmin())
    ends[:, [0, first]] = ends[:, [first, 0]]
    return Ladder(_whole_lanes(ends.astype(np.float32)), cuts.refits)


def _long(grid: Grid) -> bool:
    return grid.group == 0 or grid.group >= LONG


def _factors(span: _Span, outermost: float, space: Callable[..., NDArray[np.float64]]) -> Ladder:
    """The levels of `space`, the one nearest to 1 made 1 and put first, as factors."""
    levels = space(span.low, span.high, span.tries - span.negative)
    nearest = int(np.abs(levels - 1).argmin())
    levels[nearest], levels[0] = levels[0], 1
    if span.negative:
        levels = np.concatenate([levels, -space(span.other_low, span.other_high, span.negative)])
    return Ladder(_whole_lanes((1 / (levels * outermost)).astype(np.float32)), span.refits)


def _whole_lanes(factors: NDArray[np.float32]) -> NDArray[np.float32]:
    if factors.shape[-1] % WIDTH:
        raise ValueError(f"{factors.shape[-1]} candidates do not fill lanes of {WIDTH}")
    return factors.reshape(-1)
