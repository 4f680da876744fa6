"""Line charts as inline SVG, so that a report needs no network and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 26
COLOURS = ("#2f6fde", "#d9622b", "#2a9d63", "#9b51b6", "#b8860b", "#3aa6b9", "#c2385c", "#6b7280")

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Lines by name, each a sequence of (x, y)."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A titled chart of one or several lines."""

    title: str
    series: Series
    note: str = ""

    def svg(self) -> str:
        """The chart; lines are numbered in the order of the legend."""
        points = [point for line in self.series.values() for point in line if isfinite(point[1])]
        x_range = _range([x for x, _ in points])
        ticks = _ticks(*_range([y for _, y in points]))
        y_range = (min(ticks[0], *(y for _, y in points)), max(ticks[-1], *(y for _, y in points)))
        parts = [_axes(x_range, y_range, ticks)]
        for number, line in enumerate(self.series.values()):
            path = " ".join(f"{_x(x, x_range):.1f},{_y(y, y_range):.1f}" for x, y in line if isfinite(y))
            colour = COLOURS[number % len(COLOURS)]
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        label = escape(self.title, quote=True)
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'

    def legend(self) -> list[tuple[str, str]]:
        """Colour and name of each line."""
        return [(COLOURS[number % len(COLOURS)], name) for number, name in enumerate(self.series)]


def _axes(x_range: tuple[float, float], y_range: tuple[float, float], ticks: Sequence[float]) -> str:
    parts = []
    for tick in ticks:
        y = _y(tick, y_range)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(*x_range):
        if x_range[0] <= tick <= x_range[1]:
            x = _x(tick, x_range)
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:.4g}</text>')
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-12:
        margin = abs(high) * 0.1 or 1.0
        return low - margin, high + margin
    return low, high


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that cover [low, high]."""
    raw = (high - low) / wanted
    power = 10 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if raw <= power * factor * (1 + 1e-9))
    first = floor(low / step + 1e-9)
    ticks = [first * step]
    while ticks[-1] < high - step * 1e-6:
        ticks.append((first + len(ticks)) * step)
    return ticks


def _x(value: float, x_range: tuple[float, float]) -> float:
    return LEFT + (value - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, y_range: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (value - y_range[0]) / (y_range[1] - y_range[0]) * (HEIGHT - TOP - BOTTOM)
