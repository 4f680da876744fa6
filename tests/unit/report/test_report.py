"""Reports of one run, of seeds and of different configs."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from report_runs import make_run

from cluster.cli import main
from recipe.config import load_config
from recipe.errors import RunError
from recipe.provenance import environment_facts, write_environment
from recipe.run_folder import append_json, write_atomically
from recipe.training_facts import write_training_facts
from report.chart import Chart, Line, smooth
from report.page import write_comparison, write_report
from report.runs import duration, group_runs, read_runs
from report.samples import word_changes
from report.subject import scores, sentence
from report.tables import timing


def text_of(html: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def cards(html: str) -> dict[str, str]:
    """Charts by title."""
    found = re.findall(r'<div class="card">\s*<h3>([^<]*?) <small class="note">(.*?)</ul>', html, flags=re.S)
    return dict(found)


def test_one_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    write_environment(folder, [])
    html = write_report(folder).read_text()
    text = text_of(html)
    assert "BiCoT-GRPO, finished" in text and "0.400 → 0.800 held-out test, strict" in text
    charts = cards(html)
    assert set(charts) >= {"Reward", "KL to the reference", "Held-out dev"} and "Gradient norm" not in charts
    assert "nan" not in charts["KL to the reference"]
    assert charts["detector"].count("thick") == 4  # two task types, each with its line and its entry in the legend
    assert text.count("step 10") >= 2 and "red circle right &lt;i&gt;" in text and "a red &lt;b&gt;" in text
    assert "<ins>right &lt;i&gt;</ins>" in html and "<del>left</del> <ins>right" in html
    assert "3 → 4 words" in text and "CoTs step 0 red circle left and so on" in text and "strict missing" in text
    assert "2.00 s a step" in text and "wait for rollout 0.500 25.0 %" in text and "image 0.700" in text
    assert "Outside the steps, a run spent 30 s" in text
    assert environment_facts()["packages"]["torch"] in text and "instruction:" in text
    assert "Runs" not in re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert len(html) < 200_000


def test_older_and_unfinished_runs(tmp_path: Path) -> None:
    """What is missing is left out: new metrics, the summary, environment, pictures; and a torn last line."""
    folder = make_run(tmp_path / "half", steps=12, rich=False)
    with folder.metrics.open("a") as file:
        file.write('{"step": 13, "reward/detector": 0.')
    next(folder.samples.glob("dev-000005-0.png")).unlink()
    text = text_of(write_report(folder).read_text())
    assert "unfinished, step 12 of 20" in text and "Held-out dev prompts" in text and "step 0 → 10" in text
    assert "no picture" in text
    for absent in ("Reward by task type", "Environment", "stage of a rollout", "Outside the steps"):
        assert absent not in text

    bare = make_run(tmp_path / "bare", 0, "held_out=null", steps=0)
    bare.held_out.unlink()
    shutil.rmtree(bare.samples)
    text = text_of(write_report(bare).read_text())
    assert "No step has been taken yet" in text and "Held-out" not in text and "Fixed prompts" not in text


def test_seeds_are_overlaid(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"seed{seed}", seed) for seed in range(3)]
    out = write_comparison(folders)
    assert out == tmp_path / "report-seed0-seed1-seed2.html"
    html = out.read_text()
    text = text_of(html)
    assert "3 runs of one config" in text and "What differs" not in text
    reward = cards(html)["Reward"]
    assert reward.count('class="thin') == 3 and reward.count('class="thick c0" data-line') == 1
    assert "mean of 3 runs 0, 1, 2 3 of 3 finished 20" in text
    assert "0.500 0.400..0.600" in text and "+0.400" in text and "33.0 32.0..34.0" in text


def test_different_configs_side_by_side(tmp_path: Path) -> None:
    slow = [make_run(tmp_path / f"slow{seed}", seed, "metrics.port=null") for seed in range(2)]
    fast = make_run(tmp_path / "fast", 0, "learner.optimizer.lr=1e-3", "rewards.services.0.weight=2", steps=9)
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(slow[0].path), "--out", str(out), str(fast.path), str(slow[1].path)]) == 0
    html = out.read_text()
    text = text_of(html)
    assert "3 runs of 2 configs" in text and "pictures before" not in text  # these runs did not keep their number
    assert "rewards.services.detector.weight 1.0 2.0 learner.optimizer.lr 0.00015 0.001 Held-out" in text
    for key in ("seed", "folder", "metrics.port"):
        assert f"<td>{key}</td>" not in html
    detector = cards(html)["Reward"]
    assert detector.count('class="thin') == 2 and "slow0 (2 runs)" in detector and "fast" in detector
    assert "slow0 (2 runs), step 0 → 20" in text and "fast, step 0 → 5" in text  # dev: fast has one test score only
    assert text.count("Resolved config") == 1 and html.count("<pre") == 2


def test_what_cannot_be_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=1)
    assert main(["report", str(run.path), str(tmp_path / "none")]) == 1
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(RunError, match="given twice"):
        write_comparison([run, run])
    run.config.write_text("[1, 2")
    with pytest.raises(RunError, match="cannot be read as YAML"):
        write_report(run)


def test_secrets_stay_at_home(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0, "buffer.url=rediss://me:hush@host:6379/0",
                   "rewards.services.0.options={api_key: hushhush, max_tokens: 7}", steps=1)  # fmt: skip
    html = write_report(run).read_text()
    assert "hush" not in html and "rediss://***@host:6379/0" in html and "max_tokens: 7" in html


def test_large_pictures_become_small_and_few(tmp_path: Path) -> None:
    """A long run of 384-pixel pictures: thumbnails, and some of the scorings only."""
    run = make_run(tmp_path / "run", steps=60, of=60, side=384)
    html = write_report(run).read_text()
    assert html.count("data:image/webp") == 2 * 6 + 2 * 2 and "data:image/png" not in html
    assert "step 0</b>" in html and "step 60</b>" in html


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name / "run", steps=1) for name in "ab"]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]


def test_it_says_what_was_trained(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one")
    config = load_config(folder.config)
    write_training_facts(folder, config)
    text = text_of(write_report(folder).read_text())
    prompts = len(Path("shapes/data/train.jsonl").read_text().splitlines())
    assert (
        f"shapes/checkpoint was trained with BiCoT-GRPO on {prompts:,} prompts of shapes/data/train.jsonl by the "
        "rewards detector (1), attributes (0.5) and tidiness (0.25): 20 of 20 steps of 8 groups x 8 members, so 64 "
        "pictures each, drawn at guidance scale 2.0."
    ) in text
    dev = len(Path("shapes/data/dev.jsonl").read_text().splitlines())
    test = 4 * len(Path("shapes/data/test.jsonl").read_text().splitlines())
    assert "detector weight 1; 64 pictures a step Are the things there, in the right number and relation?" in text
    assert f"strict not trained on; 64 pictures a step; held-out: dev {dev:,}, test {test:,}" in text
    assert "attributes weight 0.5; 64 pictures a step" in text
    append_json(
        folder.metrics, {"step": 21, "seconds/step": 1.0, "pictures_per_s": 1.0, "reward_missing/strict": 210.0}
    )
    append_json(folder.held_out, {"step": 21, "split": "test", "scores": {"all": 0.5}, "pictures": {"all": 7}})
    other = make_run(tmp_path / "other", 0, "learner.optimizer.lr=1e-3", "held_out.test_members=2")
    write_training_facts(other, load_config(other.config))
    compared = text_of(write_comparison([folder, other]).read_text())
    assert "all one, step 0 → 21 7 0.400" in compared and f"other, step 0 → 20 {test // 2} 0.400" in compared
    strict = scores(group_runs(read_runs([folder])))[-1]
    assert strict.pictures == f"54 of 64 pictures a step on average; held-out: dev {dev:,}, test 7"


def test_it_says_what_older_and_smaller_runs_trained(tmp_path: Path) -> None:
    """Without the facts that newer runs keep; an adapter; no plans; one reward; several seeds."""
    options = ["semantic.enabled=false", "learner.lora={rank: 4}", "rewards.services=[{name: only, target: a:B}]",
               "held_out=null"]  # fmt: skip
    runs = [make_run(tmp_path / f"seed{seed}", seed, *options, steps=20 - seed) for seed in range(2)]
    (group,) = group_runs(read_runs(runs))
    assert sentence(group) == (
        "shapes/checkpoint was trained with BiCoT-GRPO on shapes/data/train.jsonl by the reward only (1) in each of "
        "2 runs: 19 to 20 of 20 steps of 8 groups x 8 members, so 64 pictures each, drawn at guidance scale 2.0, "
        "without a semantic CoT, a LoRA adapter of rank 4 trained."
    )
    assert "What it looks at was not recorded" in write_report(runs[0]).read_text()


def test_minutes_and_rate_are_those_of_the_console(tmp_path: Path) -> None:
    """`summary.json`, which the console reads out, is written by the same definitions."""
    folder = make_run(tmp_path / "one")
    text = text_of(write_report(folder).read_text())
    assert "40 s in steps" in text and "1.2 min in all" in text and "32.0 pictures/s in steps" in text
    assert [duration(one) for one in (59.4, 59.6, 7199, 7200)] == ["59 s", "1.0 min", "120.0 min", "2.0 h"]
    write_atomically(folder.summary, json.dumps({"seconds": 70.0, "resumed_at": 5}))
    assert "in all" not in text_of(write_report(folder).read_text())  # since the resume is not all


def test_phases_add_up_to_the_step(tmp_path: Path) -> None:
    (group,) = group_runs(read_runs([make_run(tmp_path / "run")]))
    found = timing(group)
    assert found and {phase.name: round(phase.seconds, 6) for phase in found.phases} == {
        "wait for rollout": 0.5, "train: backward": 1.0, "train: the rest": 0.2, "publish weights": 0.1,
        "the rest of the step": 0.2,
    }  # fmt: skip
    assert sum(phase.share for phase in found.phases) == pytest.approx(1)


def test_words_that_changed() -> None:
    assert word_changes("a red cat left", "a blue cat") == [
        ("same", "a"), ("old", "red"), ("new", "blue"), ("same", "cat"), ("old", "left"),
    ]  # fmt: skip
    assert word_changes("", "new") == [("new", "new")] and word_changes("same", "same") == [("same", "same")]


def test_lines_of_a_chart() -> None:
    """Smoothing is a mean by distance in x; a long line keeps its extremes; odd values do no harm."""
    assert smooth([(0, 0.0), (1, 3.0), (2, math.nan), (9, 5.0)], 2) == [(0, 1.5), (1, 1.5), (9, 5.0)]
    spiky = [(float(x), 100.0 if x == 1777 else 0.0) for x in range(5000)]
    svg = Chart("spikes", [Line("one", spiky)]).svg()
    points = re.search(r'<polyline points="([^"]+)"', svg)
    assert points and len(points[1].split()) < 300 and " 108.8,0.0 " in points[1]
    cut = Chart("spikes", [Line("one", [(0.0, 0.0), (99.0, 1.0)], [[(float(x), x == 37) for x in range(99)], spiky])])
    assert cut.cut_off() == "1 point cut off: up to 100 (step 1777)" and cut.svg().count("<polygon") == 1
    assert "<title>100, cut off</title>" in cut.svg() and ">step</text>" in svg
    low = Chart("spikes", [Line("one", [(0.0, 0.0), (99.0, 1.0)], [[(5.0, -3.0), *((x, 0.5) for x in range(99))]])])
    assert low.cut_off() == "1 point cut off: down to -3 (step 5)"
    assert Chart("spikes", [Line("one", spiky)]).cut_off() == "" and "<polygon" not in svg
    for odd in ([], [(1.0, math.inf)], [(1.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -1e-9), (2.0, 1e9)]):
        assert Chart("odd", [Line("one", odd, [odd])]).svg().count("<svg") == 2
