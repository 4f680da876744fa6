"""The console of a run at several widths, and the plain log."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from cluster.cli import _bold
from cluster.console import RunDisplay, TimeLeft, held_out_table, own_console, shown_path
from evaluation.held_out import HeldOutScores

REWARDS = {"aesthetic_preference": 0.2345, "grounded_detector": 0.8125, "visual_question_answering": 0.5, "tidy": 1.0}
SCORES = HeldOutScores({"counting": 0.25, "all": 0.375}, {}, {"counting": 60, "all": 120})
STARTING = "starting the pools: vLLM, image sampler, rewards, learner"
FIGURES = [
    "kl 0.0123", "staleness 0.5", "pictures/s 31.4", "s/step 12.50",
    "held-out dev @0 0.375", "held-out test @0 0.375", *(f"{name} {value:.3f}" for name, value in REWARDS.items()),
]  # fmt: skip


def row(step: int) -> dict[str, float]:
    rewards = {f"reward/{name}": value for name, value in REWARDS.items()}
    return {
        "step": step,
        "kl": 0.01234,
        "staleness/image": 0.5,
        "pictures_per_s": 31.44,
        "seconds/step": 12.5,
        **rewards,
    }


def screen(display: RunDisplay, width: int) -> str:
    """What a terminal of that width shows of the live display."""
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(display._render())
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capture.get())
    assert all(len(line) <= width for line in shown.splitlines())
    return shown


def test_paths_and_families_are_no_markup(capfd: pytest.CaptureFixture[str]) -> None:
    path, family = "/tmp/[/x]/[bold]:cat:", "[/y]:dog:"
    own_console().print(path)
    own_console().print(_bold("bicot: ", path, f" into {path}"), soft_wrap=True)
    assert capfd.readouterr().out == f"{path}\nbicot: {path} into {path}\n"
    for terminal in (False, True):
        console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
        with console.capture() as capture:
            RunDisplay(console, 3, "strict").say(path)
            console.print(held_out_table("strict", {family: 0.0, "all": 0.0}, {family: 1.0, "all": 1.0}))
        assert path in capture.get() and family in capture.get()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bar_count_time_and_numbers_are_whole(width: int) -> None:
    display = RunDisplay(Console(file=io.StringIO(), width=width, force_terminal=True), 1000, "strict")
    display.phase(STARTING)
    shown = screen(display, width)
    assert STARTING in shown.splitlines()[0].rstrip()
    assert re.search(r"━{8,} +0/1000 steps +0:00:\d\d elapsed +-:--:-- left", shown)
    display.held_out("dev", 0, SCORES)
    display.held_out("test", 0, SCORES)
    display.step(row(990))
    shown = screen(display, width)
    assert re.search(r"━{8,}[╸╺]? +990/1000 steps +0:00:\d\d elapsed +0:0[12]:\d\d left", shown), shown
    assert "…" not in shown and "..." not in shown
    for figure in FIGURES:
        assert re.search(rf"(^|\s){re.escape(figure)}(\s|$)", shown), figure


def test_a_plain_log_tells_the_time_of_day_and_the_time_left() -> None:
    out = io.StringIO()
    display = RunDisplay(Console(file=out, width=80), 20, "strict")
    with display:
        display.phase(STARTING)
        display.step(row(10))
        display.held_out("dev", 10, SCORES)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    for line, left in zip(lines, ("-:--:--", "0:02:05", "0:02:05"), strict=True):
        assert re.match(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  {left} left  ", line), line
    assert "step   10/20  aesthetic_preference 0.234" in lines[1] and lines[1].endswith("s/step 12.50")
    assert lines[2].endswith("held-out dev at step 10: mean strict 0.375 of 120 pictures")


def test_the_time_left_goes_by_the_newest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("cluster.console.time.monotonic", lambda: now)
    left = TimeLeft(200)
    assert left.seconds() is None and str(left) == "-:--:--"
    left.step(1, 60.0)
    assert left.seconds() == pytest.approx(199 * 60)
    for step in range(2, 101):
        now += 2.0
        left.step(step, 1.0)  # half of the time goes to scoring and saving
    assert left.seconds() == pytest.approx(100 * 2.0) and str(left) == "0:03:20"
    now += 30.0
    assert left.seconds() == pytest.approx(170.0)
    now += 1000.0
    assert str(left) == "0:00:00"


def test_time_goes_on_behind_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("cluster.console.time.monotonic", lambda: now)
    display = RunDisplay(Console(file=io.StringIO(), width=80, force_terminal=True), 10, "strict")
    now += 30.0
    display.step(row(10))
    now += 3600.0
    assert "1:00:30 elapsed  0:00:00 left" in screen(display, 80)


@pytest.mark.parametrize("width", [40, 80])
def test_the_table_at_the_end_is_whole(width: int) -> None:
    family = "a_family_of_a_rather_long_name"
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(held_out_table("strict", {family: 0.1, "all": 0.25}, {family: 0.3, "all": 0.375}))
    for number in ("0.100", "0.300", "+0.200", "0.250", "0.375", "+0.125"):
        assert number in capture.get()
    assert "…" not in capture.get()


def test_paths_are_absolute_in_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "runs" / "report.html"
    assert shown_path(Console(file=io.StringIO()), report) == str(report)
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert shown_path(terminal, report) == "runs/report.html" and shown_path(terminal, Path("a/b")) == "a/b"
    assert shown_path(terminal, tmp_path.parent) == str(tmp_path.parent)  # no chain of ..
