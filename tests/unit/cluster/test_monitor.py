"""The catalogue of metrics and all that is made from it or has to agree with it; the page; and what steps say."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from prometheus import ROOT, binary
from prometheus_client import generate_latest

from cluster.monitor.catalogue import METRICS, RAY_METRICS, SECTIONS, markdown, series_names
from cluster.monitor.exported_names import show_groups, show_replica, show_row, unknown_names
from cluster.monitor.page import MetricsPage, target_groups
from cluster.monitor.pictures import Look, look
from cluster.monitor.rolled_group import RolledGroup
from cluster.monitor.step_statistics import StepStatistics, correlations
from cluster.monitor.store import MetricError, MetricStore
from deploy.grafana.build import BOARDS, FOLDER, rendered
from deploy.grafana.panels import metric
from policy.prompts import PromptRecord
from recipe.check import check, require_wandb
from recipe.config import load_config
from transport.trajectory import ImageSegment, Member, TrajectoryGroup

RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))


def rolled(task_type: str, scores: list[float | None], looks: list[Look], tokens: list[list[int]]) -> RolledGroup:
    """A group of one reward, "detector", drawn at version 0."""
    none = torch.zeros(0)
    members = tuple(
        Member(1, None, ImageSegment(none, torch.tensor(ids), none, none, 1.0, 1.0, 0), rewards={"detector": score})
        for ids, score in zip(tokens, scores, strict=True)
    )
    prompt = PromptRecord(prompt=task_type, task_type=task_type, nouns=("circle",))  # type: ignore[arg-type]
    group = TrajectoryGroup(task_type, 0, 0, prompt, members)
    return RolledGroup(group, tuple(looks), {"image": 1.0 + len(task_type), "rewards": 0.5})


GROUPS = [
    rolled("color", [0.0, 0.5, 1.0], [Look(1, 0.1), Look(2, 0.2), Look(3, 0.3)], [[1, 1], [1, 2], [1, 2]]),
    rolled("shape", [0.5, 0.5, None], [Look(3, 0.1), Look(2, 0.1), Look(1, 0.1)], [[1, 1], [1, 1], [1, 1]]),
]


def test_names_say_what_they_are() -> None:
    names = [metric.name for section in SECTIONS for metric in section.metrics]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"bicot_[a-z_]+", name) for name in names)
    for one in METRICS.values():
        assert (one.kind == "counter") == one.name.endswith("_total"), one.name
        assert not re.search(r"_(ms|s|mb|gb|percent|perc)(_|$)", one.name), f"{one.name}: base units only"
        assert one.help.endswith(".") and "run" not in one.labels and bool(one.buckets) == (one.kind == "histogram")
        if "Seconds" in one.help.split()[:1]:
            assert "_seconds" in one.name
        if one.help.startswith("Share"):
            assert one.name.endswith("_ratio")


def test_the_docs_are_made_from_the_catalogue() -> None:
    assert (ROOT / "docs/metrics.md").read_text(encoding="utf-8") == markdown(), "run `make metrics`"


def test_the_dashboards_are_what_the_script_makes() -> None:
    assert {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.json")} == rendered(), "run `make metrics`"


def test_queries_ask_for_the_catalogue_only_and_leave_nothing_out() -> None:
    with pytest.raises(ValueError, match="bicot_nothing is not in cluster/monitor/catalogue"):
        metric("bicot_nothing")
    shown = " ".join(query.expr for board in BOARDS for panel in board.panels for query in panel.queries)
    asked = set(re.findall(r"\b(?:bicot|ray)_\w+", shown))
    assert asked <= series_names()
    families = asked | {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert {*METRICS, *RAY_METRICS} - families == {"bicot_held_out_step"}, "a metric that no dashboard shows"
    for file in RULES:
        assert set(re.findall(r"\bbicot_\w+", file.read_text())) <= series_names()
    told = set(
        re.findall(
            r"`((?:bicot|ray)_\w+)`", (ROOT / "docs/operating.md").read_text("utf-8").split("## Ten questions")[1]
        )
    )
    assert told <= {*METRICS, *RAY_METRICS}


@pytest.mark.skipif(binary("promtool") is None, reason="no promtool here: see deploy/prometheus/install.sh")
def test_rules_and_their_unit_tests() -> None:
    tests = sorted((ROOT / "deploy/prometheus/tests").glob("*.yml"))
    for command in (["check", "rules", *RULES], ["test", "rules", *tests],
                    ["check", "config", ROOT / "deploy/prometheus/prometheus.yml"]):  # fmt: skip
        done = subprocess.run(
            [str(binary("promtool")), *map(str, command)], capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    alerts = {rule["alert"] for file in RULES for rule in rules_of(file)}
    groups = [one for file in tests for one in yaml.safe_load(file.read_text())["tests"]]
    cases = [case for one in groups for case in one["promql_expr_test"]]
    for alert in alerts:
        outcomes = [case["exp_samples"] for case in cases if f'alertname="{alert}"' in case["expr"]]
        # Where it fires for one run, the others of that test are those for which it must not.
        assert any(outcomes), f"{alert} fires in no test"


def rules_of(file: Path) -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def test_the_store_takes_what_the_catalogue_holds() -> None:
    store = MetricStore("demo")
    with pytest.raises(MetricError, match=r"'bicot_new' is no gauge or counter of .*: add it there"):
        store.set("bicot_new", 1)
    with pytest.raises(MetricError, match=r"has the labels \['pool', 'replica'\], not \['pool'\]"):
        store.set("bicot_weight_version", 1, pool="image")
    with pytest.raises(MetricError, match="'bicot_step' is no histogram"):
        store.observe("bicot_step", 1)
    with pytest.raises(MetricError, match="tells 'colour': give it a metric"):
        show_replica(store, "image", "image-0", {"colour": 1})
    store.add("bicot_pictures_total", 3)
    store.add("bicot_pictures_total", 2)
    store.observe("bicot_stage_seconds", 0.2, stage="image")
    store.replace("bicot_reward_mean", {("detector", "all"): 0.5, ("detector", "color"): 0.25})
    store.replace("bicot_reward_mean", {("detector", "all"): 1.0})
    page = generate_latest(store.registry).decode()
    assert 'bicot_pictures_total{run="demo"} 5.0' in page and "# TYPE bicot_pictures_total counter" in page
    assert 'bicot_stage_seconds_bucket{le="0.3",run="demo",stage="image"} 1.0' in page
    assert 'bicot_reward_mean{reward="detector",run="demo",task_type="all"} 1.0' in page and "color" not in page


def test_a_scrape_asks_for_the_newest() -> None:
    store, seen = MetricStore("demo"), iter((1, 2))
    store.before_scrape(lambda: store.set("bicot_step", next(seen)))
    for value in (1, 2):
        assert f'bicot_step{{run="demo"}} {value}.0' in generate_latest(store.registry).decode()


def test_the_page_and_its_targets() -> None:
    store = MetricStore("demo")
    store.set("bicot_step", 3)
    page = MetricsPage("127.0.0.1", 0, store.registry, lambda: target_groups("demo", "10.0.0.1:9", ["10.0.0.2:8"]))
    try:
        base = page.address.removesuffix("/metrics")
        assert 'bicot_step{run="demo"} 3.0' in urllib.request.urlopen(page.address).read().decode()
        answer = urllib.request.urlopen(f"{base}/targets")
        assert answer.headers["Content-Type"] == "application/json"  # as Prometheus asks
        assert [(group["targets"], group["labels"]["job"]) for group in json.load(answer)] == [
            (["10.0.0.1:9"], "bicot"), (["10.0.0.2:8"], "ray"),
        ]  # fmt: skip
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{base}/elsewhere")
    finally:
        page.close()


def test_a_look_at_pictures() -> None:
    flat = np.full((48, 48, 3), 90, dtype=np.uint8)
    halves = flat.copy()
    halves[:, 24:] = 200
    assert look(flat) == Look(0.0, 0.0)
    assert look(halves).entropy == pytest.approx(1.0) and look(halves).edges == pytest.approx(1 / 47)
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert look(noise).entropy > 7 and look(noise).edges > 0.5


def test_groups_by_reward_and_task_type() -> None:
    store = MetricStore("demo")
    show_groups(store, StepStatistics.of(1, GROUPS))

    def value(name: str, task_type: str) -> float | None:
        return store.value(f"bicot_reward_{name}", reward="detector", task_type=task_type)

    assert value("mean", "all") == pytest.approx(0.5) and value("mean", "shape") == 0.5
    assert value("spread", "color") == pytest.approx(0.408, abs=1e-3) and value("spread", "shape") == 0
    assert value("zero_spread_ratio", "all") == 0.5
    assert (value("missing_total", "shape"), value("missing_total", "color"), value("scores_total", "shape")) == (
        1,
        0,
        2,
    )
    assert store.value("bicot_picture_entropy_bits", task_type="all") == 2
    assert store.value("bicot_group_diversity_ratio", task_type="color") == pytest.approx(1 / 3)
    show_groups(store, StepStatistics.of(2, GROUPS[1:]))
    assert value("mean", "color") is None and value("missing_total", "shape") == 2


def test_what_goes_together_within_a_group() -> None:
    assert correlations(GROUPS[:1], "detector") == {"entropy": pytest.approx(1.0), "edges": pytest.approx(1.0)}
    # The second group has no spread in its reward, but in its entropy, which weakens the tie.
    assert 0 < correlations(GROUPS, "detector")["entropy"] < 1
    assert correlations([rolled("color", [None] * 2, [Look(1, 0)] * 2, [[1], [2]])], "detector") == {}


def test_a_row_and_its_metrics() -> None:
    learned = {"kl": 0.1, "kl/image": 0.2, "tokens/image": 12.0, "seconds/score": 0.5}
    row = StepStatistics.of(3, GROUPS).row(learned, 1.0, 4.0)
    assert (
        row["reward/detector"] == 0.5 and row["reward_missing/detector"] == 1 and row["zero_spread/detector"] == 0.5
    )
    assert row["stage_seconds/image"] == 6 and row["stage_seconds/rewards"] == 0.5
    assert row["reward_by_task/detector/color"] == row["reward_by_task/detector/shape"] == 0.5
    assert row["staleness/image"] == row["staleness_max/image"] == 2 and row["cot/image_tokens"] == 2
    assert row["picture/entropy"] == 2 and unknown_names(row) == []
    assert unknown_names(["kl/image", "kl_new", "seconds/new", "surprise/image"]) == ["kl_new", "surprise/image"]
    store = MetricStore("demo")
    for _ in range(2):
        show_row(store, row)
    assert store.value("bicot_kl_nats", segment="all") == 0.1 and store.value("bicot_kl_nats", segment="image") == 0.2
    assert store.value("bicot_trained_tokens_total", segment="image") == 24
    assert store.value("bicot_step_phase_seconds_total", phase="wait_for_rollout") == 2


@pytest.mark.skipif(find_spec("wandb") is not None, reason="W&B is installed")
def test_wandb_is_asked_for_before_anything_starts() -> None:
    path = Path("deploy/runs/shapes.yaml")
    wrong = [one for one in check(load_config(path, ["metrics.wandb={project: demo}"]), memory=False) if not one.ok]
    assert [(one.subject, one.text) for one in wrong] == [
        ("metrics.wandb", "metrics.wandb: W&B is not installed here: pip install wandb, or set metrics.wandb to null")
    ]
    with pytest.raises(RuntimeError, match="pip install wandb"):
        require_wandb()
