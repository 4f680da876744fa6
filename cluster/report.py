"""The HTML report of a run folder: one self-contained file that opens offline."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cluster.chart import Chart
from cluster.errors import RunError
from cluster.run_folder import RunFolder, read_json_lines, write_atomically

_CHARTS = (
    ("Reward", "mean of each reward over the step's pictures", ("reward/",)),
    ("KL to the reference", "k3 estimate per token, nats", ("kl", "kl/")),
    ("Entropy", "of the next token, nats", ("entropy/",)),
    ("Length of the semantic CoT", "tokens", ("cot/tokens",)),
    ("Clipped share", "of the tokens", ("clip_fraction/",)),
    ("Gradient norm", "before clipping", ("grad_norm",)),
    ("Groups without signal", "share of groups whose members all got the same reward", ("zero_spread/",)),
    ("Diversity", "share of image tokens that differ within a group", ("diversity/",)),
    ("Staleness", "weight versions between sampling and training", ("staleness/",)),
    ("Seconds of a step", "by phase of the learner; waiting for rollout is idle learner time", ("seconds/",)),
)
"""Title, note, and the metrics by name or by prefix (ending in '/')."""


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` from what the run folder holds, finished or not.

    Raises:
        RunError: the folder holds no run.
    """
    if not folder.config.is_file():
        raise RunError(f"{folder.path} holds no run (no {folder.config.name})")
    rows = read_json_lines(folder.metrics)
    held_out = read_json_lines(folder.held_out)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("report.html.j2").render(
        name=folder.path.name,
        summary=json.loads(folder.summary.read_text("utf-8")) if folder.summary.is_file() else None,
        steps=int(rows[-1]["step"]) if rows else 0,
        seconds=sum(row["seconds/step"] for row in rows),
        scores=_before_and_after(held_out),
        charts=[*_held_out_charts(held_out), *_step_charts(rows)],
        pairs=_pairs(folder),
        config=folder.config.read_text("utf-8"),
    )
    write_atomically(folder.report, html)
    return folder.report


def _before_and_after(held_out: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Scores of the first and the last test scoring (of dev where there is no test)."""
    for split in ("test", "dev"):
        rows = [row for row in held_out if row["split"] == split]
        if rows:
            families = [*(name for name in rows[0]["scores"] if name != "all"), "all"]
            return {
                "split": split, "first": rows[0]["step"], "last": rows[-1]["step"],
                "rows": [(name, rows[0]["scores"][name], rows[-1]["scores"][name]) for name in families],
            }  # fmt: skip
    return None


def _held_out_charts(held_out: list[dict[str, Any]]) -> list[Chart]:
    charts = []
    for split in ("dev", "test"):
        lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in held_out:
            if row["split"] == split:
                for family, score in row["scores"].items():
                    lines[family].append((row["step"], score))
        if len(lines.get("all", [])) > 2:
            charts.append(Chart(f"Held-out {split}", lines, "by family; mean of the held-out metric"))
    return charts


def _step_charts(rows: list[dict[str, Any]]) -> list[Chart]:
    charts = []
    for title, note, wanted in _CHARTS:
        lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in rows:
            for name, value in row.items():
                if any(name == one or (one.endswith("/") and name.startswith(one)) for one in wanted):
                    lines[name].append((row["step"], value))
        if lines:
            charts.append(Chart(title, lines, note))
    return charts


def _pairs(folder: RunFolder) -> list[dict[str, Any]]:
    """The same held-out prompts and seeds at the first and the last scoring."""
    for split in ("test", "dev"):
        files = sorted(folder.samples.glob(f"{split}-*.json"))
        if files:
            first, last = (json.loads(file.read_text("utf-8")) for file in (files[0], files[-1]))
            after = {sample["prompt"]: sample for sample in last["samples"]}
            return [
                {"prompt": one["prompt"], "family": one["family"],
                 "sides": [(first["step"], _shown(folder, one)),
                           (last["step"], _shown(folder, after[one["prompt"]]))]}
                for one in first["samples"] if one["prompt"] in after
            ]  # fmt: skip
    return []


def _shown(folder: RunFolder, sample: dict[str, Any]) -> dict[str, Any]:
    png = (folder.samples / sample["png"]).read_bytes()
    return {**sample, "data": "data:image/png;base64," + base64.b64encode(png).decode()}
