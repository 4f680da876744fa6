"""A run that is disturbed, and a real Prometheus beside it: every panel shows something, and every rule evaluates."""

from __future__ import annotations

import json
import re
from html import escape

import pytest
import yaml
from prometheus import ROOT, Prometheus
from prometheus_client.parser import text_string_to_metric_families
from watched_run import STEPS, Watched

from cluster.monitor.catalogue import METRICS, series_names
from cluster.monitor.exported_names import unknown_names
from deploy.grafana.build import BOARDS
from deploy.grafana.draw import draw, lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WINDOW = "20s"
NEEDS_A_GPU = {"MFU", "GPU", "GPU memory"}


def watching(watched: Watched) -> Prometheus:
    if watched.prometheus is None:
        pytest.skip("no Prometheus here: deploy/prometheus/install.sh .venv/prometheus brings Debian's")
    return watched.prometheus


def run_label(watched: Watched) -> str:
    match = re.search(r'bicot_step{run="([^"]+)"}', watched.page)
    assert match
    return match.group(1)


def test_a_run_outlives_a_dead_actor_and_a_sleeping_reward(disturbed: Watched) -> None:
    """The actor is replaced, the reward is missing and never 0, and staleness stays within its bound.

    SIGTERM ends it with a checkpoint, and not by the handler of Ray, which aborts the driver after three seconds.
    """
    run = disturbed.run
    assert list(run.folder.checkpoints.iterdir())
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and STEPS <= len(rows) < 60
    assert max(row["staleness/image"] for row in rows) <= 1 and max(row["staleness/semantic"] for row in rows) <= 1
    assert max(row["staleness/semantic"] for row in rows) > 0
    log = (run.folder.logs / "driver.log").read_text()
    assert "image-0 died" in log and "SIGTERM received" not in log
    for row in rows:
        assert row["reward_missing/attributes"] == 8 and "reward/attributes" not in row
        assert row["reward_missing/detector"] == 0 and row["grad_norm"] > 0


def test_the_page_holds_the_catalogue_and_nothing_else(disturbed: Watched) -> None:
    run = run_label(disturbed)
    assert f'bicot_stage_seconds_count{{run="{run}",stage="image"}}' in disturbed.page
    assert f'bicot_weight_version{{pool="semantic",replica="semantic-0",run="{run}"}}' in disturbed.page
    for family in text_string_to_metric_families(disturbed.page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert METRICS[name].help == family.documentation and METRICS[name].kind == family.type


def test_every_name_of_a_row_has_a_metric(disturbed: Watched) -> None:
    """A statistic that is new in a row needs a metric, or a place among those that are exported otherwise."""
    for row in disturbed.run.rows():
        assert unknown_names(row) == []


def test_it_tells_where_else_to_look(disturbed: Watched) -> None:
    own, ray = json.loads(disturbed.targets)
    assert own["labels"]["job"] == "bicot" and own["targets"][0].startswith("127.0.0.1:")
    assert ray["labels"]["job"] == "ray" and len(ray["targets"]) == 1
    assert json.loads(disturbed.run.folder.targets.read_text()) == []  # the run is over


def test_prometheus_found_everything(disturbed: Watched) -> None:
    prometheus = watching(disturbed)
    found = prometheus.series("max_over_time(up[10m])", disturbed.end, disturbed.end + 1)
    assert {series["metric"]["job"]: series["values"][0][1] for series in found} == {"bicot": "1", "ray": "1"}
    names = set(prometheus.get("label/__name__/values"))
    catalogue = {name for name in series_names() if name.startswith("bicot_")}
    assert catalogue - names == {"bicot_mfu_ratio"}


def test_every_panel_shows_something(disturbed: Watched) -> None:
    prometheus, run = watching(disturbed), run_label(disturbed)
    empty = []
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                shown = lines(
                    query, lambda expr: prometheus.series(expr, disturbed.start, disturbed.end), run, WINDOW
                )
                if not shown:
                    empty.append((panel.title, query.expr))
    assert {title for title, _ in empty} <= NEEDS_A_GPU, empty
    assert {panel.title for board in BOARDS for panel in board.panels if panel.empty} == NEEDS_A_GPU


def test_every_rule_evaluates_on_what_is_there(disturbed: Watched) -> None:
    prometheus = watching(disturbed)
    files = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
    rules = [
        rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]
    ]
    health = [rule["health"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert health == ["ok"] * len(rules) and len(rules) >= 12
    for rule in rules:
        prometheus.series(rule["expr"], disturbed.start, disturbed.end, step=5)
        for name in set(re.findall(r"\bbicot_\w+", rule["expr"])):
            assert prometheus.series(name, disturbed.start, disturbed.end, step=5), (rule["alert"], name)
    restarts = prometheus.series('ALERTS{alertname="BicotRestarts",pool="image"}', disturbed.start, disturbed.end)
    assert restarts, "an actor was killed"


def test_the_panels_can_be_drawn(disturbed: Watched) -> None:
    prometheus, run = watching(disturbed), run_label(disturbed)
    for board in BOARDS:
        svg = draw(
            board.rows, lambda expr: prometheus.series(expr, disturbed.start, disturbed.end), run, WINDOW,
            disturbed.start,
        )  # fmt: skip
        assert svg.count("<polyline") > 20 and "nan" not in svg
        assert all(f">{escape(panel.title)}" in svg for panel in board.panels)
