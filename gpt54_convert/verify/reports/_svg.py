"""Small plots as SVG text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 44, 24, 60


@dataclass(frozen=True)
class Series:
    """A line: its name in the legend, its CSS colour variable, its values."""

    name: str
    colour: str
    values: Sequence[float]


def lines(labels: Sequence[str], series: Sequence[Series], logarithmic: bool = False) -> str:
    """Values over labelled places; on a logarithmic axis what is zero stands on the bottom."""
    values = [value for one in series for value in one.values if math.isfinite(value)]
    low: float
    high: float
    if logarithmic:
        positive = [math.log10(value) for value in values if value > 0] or [-1.0]
        low, high = math.floor(min(positive)), math.ceil(max(positive) + 1e-9)
        ticks = [(float(p), f"1e{p}") for p in range(low, high + 1, max(1, (high - low) // 5))]
    else:
        low_value, high_value = min(values, default=0.0), max(values, default=1.0)
        margin = 0.05 * (high_value - low_value) or 0.05 * abs(high_value) or 1.0
        low, high = low_value - margin, high_value + margin
        ticks = [(low + (high - low) * i / 4, f"{low + (high - low) * i / 4:.3g}") for i in range(5)]
    scale = _Scale(low, high, max(1, len(labels) - 1))
    parts = [_axis(scale, ticks), _names(labels, scale)]
    for index, one in enumerate(series):
        parts.append(_line(one, scale, logarithmic) + _legend(one, index))
    return _svg(parts)


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    steps: int

    def x(self, at: float) -> float:
        return _LEFT + at / self.steps * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return _HEIGHT - _BOTTOM - min(1.0, max(0.0, share)) * (_HEIGHT - _TOP - _BOTTOM)


def _line(one: Series, scale: _Scale, logarithmic: bool) -> str:
    points = []
    for at, value in enumerate(one.values):
        shown = (math.log10(value) if value > 0 else scale.low) if logarithmic else value
        if math.isfinite(shown):
            points.append((scale.x(at), scale.y(shown)))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='var({one.colour})'/>" for x, y in points)
    return f"<polyline points='{path}' fill='none' stroke='var({one.colour})' stroke-width='2'/>{dots}"


def _legend(one: Series, index: int) -> str:
    x = _LEFT + 150 * index
    mark = f"<rect x='{x}' y='6' width='10' height='10' fill='var({one.colour})'/>"
    return mark + _text(x + 15, 15, one.name, "start", "--ink")


def bars(edges: Sequence[float], counts: Sequence[int], label: Callable[[float], str]) -> str:
    """A histogram; `label` words an edge."""
    top = max([*counts, 1])
    scale = _Scale(0, top, max(1, len(counts)))
    width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(counts))
    parts = [_axis(scale, [(top * i / 4, f"{top * i / 4:.0f}") for i in range(5)])]
    for at, count in enumerate(counts):
        y = scale.y(count)
        parts.append(
            f"<rect x='{scale.x(at):.1f}' y='{y:.1f}' width='{max(1.0, width - 1):.1f}' "
            f"height='{_HEIGHT - _BOTTOM - y:.1f}' fill='var(--one)'/>"
        )
    for at in range(0, len(edges), max(1, len(edges) // 5)):
        parts.append(_text(scale.x(at), _HEIGHT - _BOTTOM + 16, label(edges[at]), "middle"))
    return _svg(parts)


@dataclass(frozen=True)
class Point:
    """A dot of a scatter plot, its name beside it."""

    name: str
    colour: str
    x: float
    y: float


def scatter(points: Sequence[Point], steps: Sequence[tuple[float, float]], words: str) -> str:
    """Dots over a logarithmic y axis, and limits as steps (x at least, y at most); words: of the x axis."""
    heights = [math.log10(max(y, 1e-12)) for y in (*(point.y for point in points), *(y for _, y in steps))]
    low, high = math.floor(min(heights)), math.ceil(max(heights) + 1e-9)
    scale = _Scale(low, high, 34)  # bits per weight, to a little beyond float32
    ticks = [(float(p), f"1e{p}") for p in range(low, high + 1, max(1, (high - low) // 6))]
    parts = [_axis(scale, ticks), _steps(scale, steps)]
    for at in (2, 4, 8, 16, 32):
        parts.append(_text(scale.x(at), _HEIGHT - _BOTTOM + 16, str(at), "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM + 36, words, "middle"))
    for index, point in reversed(list(enumerate(points))):  # the first on top
        x, y = scale.x(point.x), scale.y(math.log10(max(point.y, 1e-12)))
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5' fill='var({point.colour})'/>")
        parts.append(_legend(Series(point.name, point.colour, ()), index))
    return _svg(parts)


def _steps(scale: _Scale, steps: Sequence[tuple[float, float]]) -> str:
    corners, end = [], 34.0
    for start, limit in steps:  # from many bits to few
        y = scale.y(math.log10(limit))
        corners += [(scale.x(end), y), (scale.x(start), y)]
        end = start
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f"<polyline points='{path}' fill='none' stroke='var(--faint)' stroke-dasharray='4 3'/>"


def _axis(scale: _Scale, ticks: Sequence[tuple[float, str]]) -> str:
    parts = []
    for value, text in ticks:
        y = scale.y(value)
        parts.append(
            f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='var(--line)'/>"
            + _text(_LEFT - 6, y + 4, text, "end")
        )
    return "".join(parts)


def _names(labels: Sequence[str], scale: _Scale) -> str:
    """Every n-th label, slanted and ending below its place, so that none is cut off or overlaps."""
    parts = []
    for at in range(0, len(labels), max(1, -(-len(labels) // 12))):
        x, y = scale.x(at), _HEIGHT - _BOTTOM + 14
        short = labels[at].replace("encoder", "enc").replace("decoder", "dec").replace("embedding", "emb")
        parts.append(f"<g transform='rotate(-30 {x:.1f} {y})'>{_text(x, y, short, 'end')}</g>")
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, colour: str = "--faint") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='11' text-anchor='{anchor}' fill='var({colour})'>"
        f"{escape(text)}</text>"
    )


def _svg(parts: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{''.join(parts)}</svg>"
