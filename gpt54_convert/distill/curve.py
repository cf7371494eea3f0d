"""The course of a training: as an SVG, and as a few lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 320, 56, 40, 34
_COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1")
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def svg(title: str, series: dict[str, Points], x_label: str, y_label: str) -> bytes:
    """A line chart; the same points give the same bytes."""
    points = [point for each in series.values() for point in each]
    x_most = max((x for x, _ in points), default=1.0) or 1.0
    low, high = min((y for _, y in points), default=0.0), max((y for _, y in points), default=1.0)
    high = high if high > low else low + 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - 12) * x / x_most
        down = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - y) / (high - low)
        return round(across, 2), round(down, 2)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="18" font-size="13">{escape(title)}</text>',
    ]
    for step in range(5):
        value = low + (high - low) * step / 4
        _, down = place(0, value)
        parts.append(f'<path d="M{_LEFT} {down}H{_WIDTH - 12}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down + 4}" text-anchor="end">{value:.3g}</text>')
        across, _ = place(x_most * step / 4, low)
        parts.append(
            f'<text x="{across}" y="{_HEIGHT - 22}" text-anchor="middle">{x_most * step / 4:,.0f}</text>'
        )
    parts.append(f'<text x="{_WIDTH - 12}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text x="4" y="{_HEIGHT - 6}">{escape(y_label)}</text>')
    for index, (name, each) in enumerate(series.items()):
        color = _COLORS[index % len(_COLORS)]
        line = " ".join(f"{x},{y}" for x, y in (place(*point) for point in each))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{_WIDTH - 150}" y="{_TOP + 14 * (index + 1)}" fill="{color}">{escape(name)}</text>'
        )
    return ("\n".join([*parts, "</svg>"]) + "\n").encode()


def text(points: Points, width: int = 60, height: int = 6) -> list[str]:
    """The same as lines of block characters, largest value on top; empty without points."""
    if not points:
        return []
    last = points[-1][0] or 1.0
    columns: list[list[float]] = [[] for _ in range(width)]
    for x, y in points:
        columns[min(width - 1, int(x / last * width))].append(y)
    means, held = [], points[0][1]
    for column in columns:
        held = sum(column) / len(column) if column else held
        means.append(held)
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    levels = [1 + round((value - low) / span * (8 * height - 1)) for value in means]
    rows = []
    for row in range(height - 1, -1, -1):
        label = f"{low + span * (row + 0.5) / height:8.3f} "
        rows.append(label + "".join(_EIGHTHS[max(0, min(8, level - 8 * row))] for level in levels))
    return rows
