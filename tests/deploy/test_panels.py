"""Pictures of dashboards can be read: no text over another, none outside, letters of a fair size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from draw_panels import PICTURES
from headless_chromium import BROWSER, Chromium

from deploy.grafana.build import BOARDS
from deploy.grafana.draw import draw, fill_in

START = 1_700_000_000.0
LABELS = {
    name
    for board in BOARDS for panel in board.panels for query in panel.queries
    for name in re.findall(r"{{(\w+)}}", query.legend)
}  # fmt: skip
BOXES = """[...document.querySelectorAll('text')].map((one) => {
  const box = one.getBoundingClientRect();
  return [one.textContent, box.left, box.top, box.right, box.bottom];
})"""


NUMBERS = {
    fill_in(query.expr, "run", "1m")
    for board in BOARDS
    for panel in board.panels
    if panel.stat
    for query in panel.queries
}


def several(expr: str) -> list[dict[str, Any]]:
    """Five minutes of seven curves, whatever is asked for; of one where a panel shows a number."""
    return [
        {
            "metric": {name: f"a {name} {number}" for name in LABELS},
            "values": [[START + 5 * at, str(number * at % 17 / 17)] for at in range(60)],
        }
        for number in range(1 if expr in NUMBERS else 7)
    ]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_no_text_covers_another(tmp_path: Path) -> None:
    rows = {board.uid: board.rows for board in BOARDS} | PICTURES
    with Chromium(tmp_path / "profile") as browser:
        for name, wanted in rows.items():
            svg = draw(wanted, several, "run", "1m", START)
            page = tmp_path / f"{name}.html"
            page.write_text(f"<body style='margin: 0'>{svg}</body>")
            assert browser.visit(page, 1200).complaints == []
            width = int(re.search(r'width="(\d+)"', svg)[1])  # type: ignore[index]
            boxes = sorted(browser.value(BOXES), key=lambda box: box[2])
            assert len(boxes) > 40 and sum(text == "min" for text, *_ in boxes) > 5
            for place, (text, left, top, right, bottom) in enumerate(boxes):
                assert left >= 0 and right <= width and bottom - top >= 14, (name, text)
                for other, other_left, other_top, other_right, _ in boxes[place + 1 :]:
                    if other_top >= bottom - 2:
                        break
                    assert right <= other_left or other_right <= left, (name, text, other)
