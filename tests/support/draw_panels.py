"""The dashboards' pictures in docs/panels, from a healthy run of a few minutes: see `make panels`."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus import Prometheus, binary, free_port
from run_process import ROOT, Run

from deploy.grafana import rewards_board, run_board
from deploy.grafana.draw import draw
from deploy.grafana.panels import Panel

WINDOW = "30s"
STEPS = 40
LIKE_THE_DEMO = [
    f"steps={STEPS}", "rollout.group_size=8", "rollout.groups_per_step=8", "buffer.capacity=64",
    "checkpoint.every=20", "learner.optimizer.lr=1.5e-4", "ray.start_deadline_s=900",
]  # fmt: skip

_RUN, _REWARDS = run_board.BOARD.rows, rewards_board.BOARD.rows
_QUIET = ("MFU", "Micro-batches", "CoTs cut off", "Members that do not train", "Restarts")
"""Panels that show nothing, or one value all along, where nothing is wrong."""


def _moving(panels: Iterable[Panel]) -> Sequence[Panel]:
    return [panel for panel in panels if panel.title not in _QUIET]


PICTURES = {
    "learns": {"Now": _moving(_RUN["Now"])[:4], "Does it learn?": _moving(_RUN["Does it learn?"])[:8]},
    "fast": {name: _moving(_RUN[name]) for name in ("How fast?", "What holds it back?")},
    "rewards": {name: _moving(_REWARDS[name])[:4] for name in ("By reward", "Signs of reward hacking")},
}


def main(folder: Path) -> int:
    if binary("prometheus") is None:
        print("no Prometheus here: deploy/prometheus/install.sh .venv/prometheus brings Debian's")  # noqa: T201
        return 1
    scratch = Path(tempfile.mkdtemp())
    try:
        _draw(folder, scratch)
    finally:
        shutil.rmtree(scratch)
    return 0


def _draw(folder: Path, scratch: Path) -> None:
    port = free_port()
    dev = scratch / "dev.jsonl"
    dev.write_text("".join((ROOT / "shapes/data/dev.jsonl").read_text().splitlines(keepends=True)[::4]))
    with Prometheus(scratch / "prometheus", f"http://127.0.0.1:{port}/targets") as prometheus:
        began = time.time()
        run = Run(
            scratch / "run", *LIKE_THE_DEMO, f"metrics.port={port}",
            f"held_out={{metric: strict, dev: {dev}, every: 10, samples: 0}}",
        )  # fmt: skip
        try:
            run.wait_for(1, deadline_s=900)
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
            run.wait_for(STEPS, deadline_s=3600)
            end = time.time()
            run.finish()
        finally:
            run.kill()
        match = re.search(r'bicot_step{run="([^"]+)"}', page)
        assert match
        (started,) = prometheus.series("bicot_start_timestamp_seconds", began, end)
        start = float(started["values"][-1][1])
        step = max(1.0, (end - start) / 300)

        def ask(expr: str) -> list[dict[str, Any]]:
            return prometheus.series(expr, start, end, step)

        folder.mkdir(exist_ok=True)
        for name, rows in PICTURES.items():
            (folder / f"{name}.svg").write_text(draw(rows, ask, match[1], WINDOW, start), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
