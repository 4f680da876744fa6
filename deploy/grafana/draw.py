"""What a dashboard's panels show, asked of a Prometheus and drawn as an SVG: pictures for docs/, without Grafana."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from deploy.grafana.panels import Board, Panel, Query
from report.chart import HEIGHT, WIDTH, Chart, Line, style

Ask = Callable[[str], Sequence[Mapping[str, Any]]]
"""A range query's series: `metric` (labels) and `values` ([Unix time, text])."""
Lines = dict[str, list[tuple[float, float]]]
"""Curves by legend: (Unix time, value), values that are no number left out."""

GAP, TITLE, LEGEND, HEADING, STAT = 14, 20, 15, 30, 58
_COLOURS = ("#2f6fde", "#d9622b", "#23895a", "#9b51b6", "#a87a00", "#1f8fa5", "#c2385c", "#6b7280")
_STYLE = (
    "text{font:11px sans-serif;fill:#57606a}.grid{stroke:#d8dee4}.title{font-size:13px;fill:#1f2328}"
    ".heading{font-size:16px;fill:#1f2328;font-weight:600}.number{font-size:20px;fill:#2f6fde}"
    ".thick{stroke-width:2;fill:none}" + "".join(f".c{n}{{stroke:{colour}}}" for n, colour in enumerate(_COLOURS))
)


def fill_in(expr: str, run: str, window: str) -> str:
    """A panel's PromQL with the dashboard's variables filled in."""
    return expr.replace("$run", run).replace("$window", window)


def lines(query: Query, ask: Ask, run: str, window: str) -> Lines:
    """What one query of a panel shows; empty where there is nothing."""
    found: Lines = {}
    for series in ask(fill_in(query.expr, run, window)):
        points = [(float(at), float(text)) for at, text in series["values"]]
        points = [(at, value) for at, value in points if math.isfinite(value)]
        if points:
            labels: Mapping[str, str] = series["metric"]
            name = re.sub(r"{{(\w+)}}", lambda match, labels=labels: labels.get(match[1], ""), query.legend)  # type: ignore[misc]
            found[name.strip()] = points
    return found


def draw(board: Board, shown: Sequence[Lines], start: float) -> str:
    """An SVG of the board; `shown` holds each panel's lines, in order, and time runs in seconds from `start`."""
    parts, top, left = [], 8.0, 3 * (WIDTH + GAP)
    results = iter(shown)
    for title, panels in board.rows.items():
        parts.append(f'<text x="0" y="{top + 18:.0f}" class="heading">{escape(title)}</text>')
        top += HEADING
        per_row = 6 if panels[0].stat else 3  # of Grafana's 24 columns, as wide as there
        for first in range(0, len(panels), per_row):
            row = [(panel, next(results)) for panel in panels[first : first + per_row]]
            drawn = [_panel(panel, curves, start) for panel, curves in row]
            for number, (content, _) in enumerate(drawn):
                parts.append(f'<g transform="translate({number * left / per_row:.0f},{top:.0f})">{content}</g>')
            top += max(height for _, height in drawn) + GAP
    size = f'viewBox="0 0 {left - GAP} {top:.0f}" width="{left - GAP}" height="{top:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _prefix(unit: str, curves: Lines) -> tuple[float, str]:
    """What bytes are divided by to be read, and its name."""
    if unit not in ("bytes", "Bps"):
        return 1.0, ""
    largest = max(abs(value) for points in curves.values() for _, value in points)
    factor, name = next(((f, n) for f, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= f), (1.0, "B"))
    return factor, f", {name}/s" if unit == "Bps" else f", {name}"


def _panel(panel: Panel, curves: Lines, start: float) -> tuple[str, float]:
    """A panel's drawing, and its height."""
    title = f'<text x="0" y="13" class="title">{escape(panel.title)}</text>'
    if not curves:
        return f'{title}<text x="0" y="34">nothing: {escape(panel.empty or "no data")}</text>', STAT
    if panel.stat:
        texts = " / ".join(f"{points[-1][1]:.3g}" for points in curves.values())
        what = escape(" / ".join(curves))
        return f'{title}<text x="0" y="36" class="number">{texts}</text><text x="0" y="51">{what}</text>', STAT
    names, factor, suffix = sorted(curves), *_prefix(panel.unit, curves)
    title = title.replace("</text>", f"{suffix}</text>")
    scaled = [Line(name, [(at - start, value / factor) for at, value in curves[name]]) for name in names]
    chart = Chart(panel.title, scaled)
    size = f'<svg y="{TITLE}" width="{WIDTH}" height="{HEIGHT}" '
    parts = [title, chart.svg().replace("<svg ", size, 1)]
    top, x = TITLE + HEIGHT + 10, 0
    for number, name in enumerate(names):
        width = round(28 + 6.2 * len(name))
        if x and x + width > WIDTH:
            top, x = top + LEGEND, 0
        colour, dashes = style(number)
        line = f'x1="{x}" x2="{x + 18}" y1="{top - 4}" y2="{top - 4}" stroke-dasharray="{dashes}"'
        parts.append(f'<line {line} class="thick {colour}"/><text x="{x + 22}" y="{top}">{escape(name)}</text>')
        x += width
    return "".join(parts), top + 4
