"""Line charts as inline SVG, so that a report needs no network and no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22
_COLOURS = 8
"""Classes c0 to c7 of the page's style sheet."""
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")
_POINTS = 240
_OUTLIERS = 0.02

Points = Sequence[tuple[float, float]]
"""(x, y) in order of x."""


@dataclass(frozen=True, slots=True)
class Line:
    """One entry of the legend: `thick` is drawn over the lines `thin`, which it summarises."""

    name: str
    thick: Points
    thin: Sequence[Points] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A titled chart; the position in `lines` gives a line's colour and dashes. `dots` marks every point.

    `x_name` is written before the numbers of the x axis.
    """

    title: str
    lines: Sequence[Line]
    note: str = ""
    dots: bool = False
    x_name: str = "step"

    def svg(self) -> str:
        """The chart. A few outliers of thin lines may lie outside its frame; marks at its edge say where."""
        every = [point for line in self.lines for points in (line.thick, *line.thin) for point in points]
        x_range = _range([x for x, y in every if isfinite(y)])
        ticks = self._y_ticks()
        frame = _Frame(x_range, (ticks[0], ticks[-1]))
        thin = [frame.line(points, f'class="thin {style(number)[0]}"')
                for number, line in enumerate(self.lines) for points in line.thin]  # fmt: skip
        thick = [frame.thick(line, number) for number, line in enumerate(self.lines)]
        dots = [frame.dots(line.thick, style(number)[0]) for number, line in enumerate(self.lines) if self.dots]
        # Lines at the very top or bottom show their whole width.
        inner = (
            f'<svg x="{LEFT}" y="{TOP - 2}" width="{frame.width}" height="{frame.height + 4}" '
            f'viewBox="0 -2 {frame.width} {frame.height + 4}">'
        )
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-x="{x_range[0]:g} {x_range[1]:g}" '
            f'data-y="{ticks[0]:g} {ticks[-1]:g}" aria-label="{escape(self._words(), quote=True)}">'
            f"{frame.axes(ticks, self.x_name)}{inner}{''.join(thin + thick)}</svg>"
            f"{''.join(dots)}{frame.marks(self._cut())}</svg>"
        )

    def legend(self) -> list[tuple[str, str]]:
        """Name and last value of each line, to stand beside its `style`."""
        return [(line.name, f"{line.thick[-1][1]:.3g}" if line.thick else "") for line in self.lines]

    def cut_off(self) -> str:
        """The points outside the frame, in words; "" if there are none."""
        cut = self._cut()
        if not cut:
            return ""
        top, low = self._y_ticks()[-1], min(cut, key=lambda point: point[2])
        high = max(cut, key=lambda point: point[2])
        ends = [f"up to {high[2]:.3g} ({self.x_name} {high[1]:g})"] if high[2] > top else []
        ends += [f"down to {low[2]:.3g} ({self.x_name} {low[1]:g})"] if low[2] < self._y_ticks()[0] else []
        return f"{len(cut)} point{'s' if len(cut) > 1 else ''} cut off: {', '.join(ends)}"

    def _cut(self) -> list[tuple[int, float, float]]:
        """Points outside the frame: the line's number, x, y."""
        low, high = self._y_ticks()[0], self._y_ticks()[-1]
        return [
            (number, x, y)
            for number, line in enumerate(self.lines)
            for points in line.thin
            for x, y in points
            if isfinite(y) and not low <= y <= high
        ]

    def _y_ticks(self) -> list[float]:
        return _ticks(*_range(self._framed()))

    def _framed(self) -> list[float]:
        """Values that must lie in the frame: all of the thick lines, nearly all of the thin ones."""
        values = [y for line in self.lines for _, y in line.thick if isfinite(y)]
        thin = sorted(y for line in self.lines for points in line.thin for _, y in points if isfinite(y))
        cut = int(len(thin) * _OUTLIERS)
        return values + thin[cut : len(thin) - cut]

    def _words(self) -> str:
        ends = [(line.name, line.thick[0][1], line.thick[-1][1]) for line in self.lines if line.thick]
        return f"{self.title}: " + "; ".join(f"{name} from {first:.3g} to {last:.3g}" for name, first, last in ends)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps values to the plot's area, whose own origin is its upper left corner."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    width = WIDTH - LEFT - RIGHT
    height = HEIGHT - TOP - BOTTOM

    def x(self, value: float) -> float:
        return (value - self.x_range[0]) / (self.x_range[1] - self.x_range[0]) * self.width

    def y(self, value: float) -> float:
        return self.height - (value - self.y_range[0]) / (self.y_range[1] - self.y_range[0]) * self.height

    def line(self, points: Points, attributes: str, inside: str = "") -> str:
        shown = [f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in _thinned(points)]
        return f'<polyline points="{" ".join(shown)}" {attributes}>{inside}</polyline>' if shown else ""

    def thick(self, line: Line, number: int) -> str:
        colour, dashes = style(number)
        attributes = f'class="thick {colour}" data-line="{number}" stroke-dasharray="{dashes}"'
        return self.line(line.thick, attributes, f"<title>{escape(line.name)}</title>")

    def dots(self, points: Points, colour: str) -> str:
        return "".join(
            f'<circle cx="{LEFT + self.x(x):.1f}" cy="{TOP + self.y(y):.1f}" r="2.6" class="dot {colour}"/>'
            for x, y in points
            if isfinite(y)
        )

    def marks(self, cut: Sequence[tuple[int, float, float]]) -> str:
        """A triangle at the frame's edge for each point outside."""
        parts = []
        for number, x, y in cut:
            above = y > self.y_range[1]
            at, tip = LEFT + self.x(x), TOP - 5 if above else HEIGHT - BOTTOM + 5
            base = TOP + 2 if above else HEIGHT - BOTTOM - 2
            parts.append(
                f'<polygon points="{at - 4:.1f},{base} {at + 4:.1f},{base} {at:.1f},{tip}" '
                f'class="dot {style(number)[0]}"><title>{y:.3g}, cut off</title></polygon>'
            )
        return "".join(parts)

    def axes(self, ticks: Sequence[float], x_name: str) -> str:
        parts = [f'<text x="{LEFT - 8}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_name)}</text>']
        digits = max(len(f"{tick:.4g}".partition(".")[2]) for tick in ticks)
        for tick in ticks:
            y = TOP + self.y(tick)
            text = f"{tick:.4g}" if "e" in f"{tick:.4g}" else f"{tick:.{digits}f}"
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
        for tick in _ticks(*self.x_range):
            if self.x_range[0] <= tick <= self.x_range[1] and tick == int(tick):
                x = min(LEFT + self.x(tick), WIDTH - RIGHT - 4 * len(f"{tick:.0f}"))
                parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{tick:.0f}</text>')
        return "".join(parts)


def style(number: int) -> tuple[str, str]:
    """Colour class and dashes of a chart's line with that number."""
    return f"c{number % _COLOURS}", _DASHES[(number + number // _COLOURS) % len(_DASHES)]


def smooth(points: Points, span: float) -> list[tuple[float, float]]:
    """The mean of each point and its neighbours at most `span` / 2 away in x."""
    points = [point for point in points if isfinite(point[1])]
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    left = right = 0
    smoothed = []
    for x, _ in points:
        while points[left][0] < x - span / 2:
            left += 1
        while right < len(points) and points[right][0] <= x + span / 2:
            right += 1
        smoothed.append((x, (sums[right] - sums[left]) / (right - left)))
    return smoothed


def _thinned(points: Points) -> list[tuple[float, float]]:
    """The finite points; a long line keeps the lowest and the highest of each stretch, so its envelope stays."""
    finite = [point for point in points if isfinite(point[1])]
    if len(finite) <= _POINTS:
        return finite
    size = ceil(2 * len(finite) / _POINTS)
    kept = [finite[0]]
    for start, end in pairwise([*range(0, len(finite), size), len(finite)]):
        stretch = finite[start:end]
        ends = (min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1]))
        kept += sorted({*ends} - {kept[-1]})
    return kept if kept[-1] == finite[-1] else [*kept, finite[-1]]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-12:
        margin = abs(high) * 0.1
        return (low - margin, high + margin) if margin else (0.0, 1.0)
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
