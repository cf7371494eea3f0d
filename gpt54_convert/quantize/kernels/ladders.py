"""Which scales a search tries: few that come within some parts in a thousand of the least error possible.

Found by trying spans and counts against hundreds of scales a group, on Gaussian, Student-t and Laplace
weights in groups of 32 and 128, with and without importances that spread over several powers of ten.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt54_convert.quantize.kernels.groups import WIDTH


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


_PLAIN = {
    2: _Span(16, 2, 0.7, 1.7, 4, 0.8, 1.6),
    3: _Span(16, 1, 0.9, 1.7, 4, 0.8, 1.6),
    4: _Span(16, 1, 0.85, 1.3),
    5: _Span(16, 1, 0.85, 1.12, 2, 0.8, 1.0),
    6: _Span(16, 1, 0.85, 1.06),
    7: _Span(32, 1, 0.85, 1.04),
    8: _Span(32, 1, 0.92, 1.02),
}
_WEIGHTED = {
    2: _Span(16, 2, 0.7, 1.7, 6, 0.8, 1.6),
    3: _Span(32, 1, 0.9, 1.7, 12, 0.8, 1.6),
    4: _Span(32, 1, 0.9, 1.7, 12, 0.8, 1.6),
    5: _Span(32, 1, 0.75, 1.5, 4, 0.9, 1.1),
    6: _Span(32, 1, 0.75, 1.3),
    7: _Span(32, 1, 0.8, 1.1),
    8: _Span(32, 1, 0.92, 1.02),
}
# Rows of thousands of elements: the best scale may clip the outermost ones far below the peak.
_LONG = _Span(48, 1, 0.9, 4.0)
_CURVED = {False: _Span(16, 1, 0.8, 1.3, 4, 0.8, 1.1), True: _Span(32, 1, 0.7, 1.5, 8, 0.6, 1.3)}


@lru_cache
def signed(name: str, bits: int, weighted: bool, long: bool) -> Ladder:
    """Factors on a group's peak; the first is that of plain rounding."""
    if name == "iq4_nl":
        return _factors(_CURVED[weighted], -127.0)
    outermost = 127.0 if bits == 8 else -float(1 << (bits - 1))
    return _factors(_LONG if long else (_WEIGHTED if weighted else _PLAIN)[bits], outermost)


def _factors(span: _Span, outermost: float) -> Ladder:
    """Levels evenly spaced (for long rows in equal ratios), the one nearest to 1 made 1 and put first."""
    space = np.geomspace if span is _LONG else np.linspace
    levels = space(span.low, span.high, span.tries - span.negative)
    nearest = int(np.abs(levels - 1).argmin())
    levels[nearest], levels[0] = levels[0], 1
    levels = np.concatenate([levels, -np.linspace(span.other_low, span.other_high, span.negative)])
    if levels.size % WIDTH:
        raise ValueError(f"{levels.size} candidates do not fill lanes")
    return Ladder((1 / (levels * outermost)).astype(np.float32), span.refits)


@lru_cache
def affine(bits: int, weighted: bool, long: bool) -> Ladder:
    """Parts of the range to cut off its lower end, then off its upper end; the first of each is not read.

    Candidates are pairs of a whole cut (the range shrinks) and a shift between the ends.
    """
    whole, shift, tries, refits = (-0.1, 0.1), 0.06, (8, 8), 1
    shrinks, shifts = np.meshgrid(np.linspace(*whole, tries[0]), np.linspace(-shift, shift, tries[1]))
    cuts = np.stack([shrinks + shifts, shrinks - shifts]).reshape(2, -1) / 2
    first = int(np.abs(cuts).sum(axis=0).argmin())
    cuts[:, [0, first]] = cuts[:, [first, 0]]
    return Ladder(cuts.reshape(-1).astype(np.float32), refits)
