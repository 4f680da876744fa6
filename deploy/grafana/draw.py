"""Draws a dashboard's panels as an SVG from the data of a Prometheus: pictures for docs/, without Grafana."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from deploy.grafana.panels import Panel, Query
from report.chart import HEIGHT, WIDTH, Chart, Line, style

Ask = Callable[[str], Sequence[Mapping[str, Any]]]
"""A range query's series: `metric` (labels) and `values` ([Unix time, text])."""
Lines = dict[str, list[tuple[float, float]]]
"""Curves by legend: (Unix time, value), values that are no number left out."""

SCALE = 1.5
"""Scale of a panel relative to a report's chart, letters included; two panels fit in a page's width."""
PANEL, GAP, MARGIN = round(SCALE * WIDTH), 36, 12
TITLE, NOTE, LEGEND, HEADING, STAT = 24, 19, 22, 44, 78
_NOTE_LETTERS, _LETTER = 74, 7.8
_COLOURS = ("#2f6fde", "#d9622b", "#23895a", "#9b51b6", "#a87a00", "#1f8fa5", "#c2385c", "#6b7280")
_UNITS = {"s": "seconds", "percentunit": "share", "percent": "%"}
_STYLE = (
    "text{font:11px sans-serif;fill:#4b535d}.grid{stroke:#d8dee4}.title{font-size:17px;fill:#1f2328;font-weight:600}"
    ".heading{font-size:22px;fill:#1f2328;font-weight:600}.number{font-size:28px;fill:#2f6fde}"
    ".note,.what{font-size:14px}.thick{stroke-width:2;fill:none}"
    + "".join(f".c{n}{{stroke:{colour}}}" for n, colour in enumerate(_COLOURS))
)


def fill_in(expr: str, run: str, window: str) -> str:
    """A panel's PromQL with the dashboard's variables filled in."""
    return expr.replace("$run", run).replace("$window", window)


def lines(query: Query, ask: Ask, run: str, window: str) -> Lines:
    """The curves of one query of a panel; empty without data."""
    found: Lines = {}
    for series in ask(fill_in(query.expr, run, window)):
        points = [(float(at), float(text)) for at, text in series["values"]]
        points = [(at, value) for at, value in points if math.isfinite(value)]
        if points:
            labels: Mapping[str, str] = series["metric"]
            name = re.sub(r"{{(\w+)}}", lambda match, labels=labels: labels.get(match[1], ""), query.legend)  # type: ignore[misc]
            found[name.strip()] = points
    return found


def draw(rows: Mapping[str, Sequence[Panel]], ask: Ask, run: str, window: str, start: float) -> str:
    """An SVG of a dashboard's rows; time runs in minutes from `start` (Unix time)."""
    parts, top, width = [], float(MARGIN), 2 * PANEL + GAP
    for title, panels in rows.items():
        parts.append(f'<text x="0" y="{top + 24:.0f}" class="heading">{escape(title)}</text>')
        top += HEADING
        across = 4 if panels[0].stat else 2
        for first in range(0, len(panels), across):
            drawn = []
            for panel in panels[first : first + across]:
                curves: Lines = {}
                for query in panel.queries:
                    curves |= lines(query, ask, run, window)
                drawn.append(_panel(panel, curves, start))
            for number, (content, _) in enumerate(drawn):
                left = number * (width + GAP) / across
                parts.append(f'<g transform="translate({left:.0f},{top:.0f})">{content}</g>')
            top += max(height for _, height in drawn) + GAP
    size = f'viewBox="{-MARGIN} 0 {width + 2 * MARGIN} {top:.0f}" width="{width + 2 * MARGIN}" height="{top:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_STYLE}</style>'
        f'<rect x="{-MARGIN}" width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _unit(unit: str, curves: Lines) -> tuple[float, str]:
    """The divisor for readable values, and the unit's name."""
    if unit not in ("bytes", "Bps"):
        return 1.0, _UNITS.get(unit, "")
    largest = max(abs(value) for points in curves.values() for _, value in points)
    factor, name = next(((f, n) for f, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= f), (1.0, "B"))
    return factor, f"{name}/s" if unit == "Bps" else name


def _panel(panel: Panel, curves: Lines, start: float) -> tuple[str, float]:
    """A panel's drawing, and its height."""
    title = f'<text x="0" y="16" class="title">{escape(panel.title)}</text>'
    if not curves:
        return f'{title}<text x="0" y="40" class="note">nothing: {escape(panel.empty or "no data")}</text>', STAT
    factor, unit = _unit(panel.unit, curves)
    if panel.stat:
        texts = " / ".join(f"{points[-1][1]:.3g}" for points in curves.values())
        what = escape(" / ".join(curves))
        return f'{title}<text x="0" y="47" class="number">{texts}</text><text y="68" class="what">{what}</text>', STAT
    told = unit in f"{panel.title} {panel.note}".lower()
    parts = [title if told else title.replace("</text>", f", {unit}</text>")]
    top = TITLE
    for text in textwrap.wrap(panel.note, _NOTE_LETTERS):
        top += NOTE
        parts.append(f'<text x="0" y="{top - 6}" class="note">{escape(text)}</text>')
    names = sorted(curves)
    scaled = [Line(name, [((at - start) / 60, value / factor) for at, value in curves[name]]) for name in names]
    size = f'<svg y="{top}" width="{PANEL}" height="{round(SCALE * HEIGHT)}" '
    parts.append(Chart(panel.title, scaled, x_name="min").svg().replace("<svg ", size, 1))
    legend, height = _legend(names, top + round(SCALE * HEIGHT) + 18)
    return "".join([*parts, legend]), height


def _legend(names: Sequence[str], top: int) -> tuple[str, int]:
    """The legend's drawing from `top` on, in as many rows as it takes, and where it ends."""
    parts, x = [], 0
    for number, name in enumerate(names):
        width = round(54 + _LETTER * len(name))
        if x and x + width > PANEL:
            top, x = top + LEGEND, 0
        colour, dashes = style(number)
        line = f'x1="{x}" x2="{x + 28}" y1="{top - 5}" y2="{top - 5}" stroke-dasharray="{dashes}"'
        parts.append(
            f'<line {line} class="thick {colour}"/><text x="{x + 34}" y="{top}" class="note">{escape(name)}</text>'
        )
        x += width
    return "".join(parts), top + 4
