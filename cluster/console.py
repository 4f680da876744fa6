"""The progress display of a run: live on a terminal, one line per step elsewhere, and a table at the end."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:  # the console prints before Ray and torch are imported
    from evaluation.held_out import HeldOutScores

_PACE_STEPS = 50
"""Number of newest steps whose pace gives the time left."""


def own_console() -> Console:
    """A console on a copy of stdout, so that stdout itself, with the output of libraries, can go to a log.

    It prints text literally: brackets and colons in a path are no markup.
    """
    sys.stdout.flush()
    return Console(
        file=os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace"),
        highlight=False,
        markup=False,
        emoji=False,
    )


def shown_path(console: Console, path: Path) -> str:
    """A path that the reader can open: relative on a terminal, absolute in a log that is read elsewhere."""
    path = path.absolute()
    below = console.is_terminal and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd()) if below else path)


class Elapsed:
    """The time since creation; unlike rich's own column it continues after the last step."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __str__(self) -> str:
        return _clock(time.monotonic() - self._began)


class TimeLeft:
    """Estimates the time for the remaining steps from the pace of the newest ones, scoring and saving included."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._ends: deque[tuple[int, float]] = deque(maxlen=_PACE_STEPS)

    def step(self, step: int, seconds: float) -> None:
        """A step that took `seconds` has ended now."""
        now = time.monotonic()
        if not self._ends:
            self._ends.append((step - 1, now - seconds))
        self._ends.append((step, now))

    def seconds(self) -> float | None:
        """None before the first step."""
        if not self._ends:
            return None
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        due = (self._steps - last) * (ended - began) / (last - first)
        return max(0.0, due - (time.monotonic() - ended))

    def __str__(self) -> str:
        seconds = self.seconds()
        return "-:--:--" if seconds is None else _clock(seconds)


class RunDisplay:
    """Shows a run's progress. Use as a context manager."""

    def __init__(self, console: Console, steps: int, metric: str | None) -> None:
        self._console = console
        self._metric = metric
        whole = Column(no_wrap=True)
        self._progress = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            MofNCompleteColumn(table_column=whole), TextColumn("steps ", table_column=whole),
            TextColumn("{task.fields[elapsed]} elapsed ", table_column=whole),
            TextColumn("{task.fields[left]} left", table_column=whole), console=console, expand=True,
        )  # fmt: skip
        self._left = TimeLeft(steps)
        self._task = self._progress.add_task("", total=steps, elapsed=Elapsed(), left=self._left)
        self._phase = "starting"
        self._row: Mapping[str, float] = {}
        self._held_out: dict[str, tuple[int, float]] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)
        self._steps = steps

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print one permanent line, with the time of day; in a plain log also with the date and the time left."""
        if self._console.is_terminal:
            self._console.print(Text.assemble((time.strftime("%H:%M:%S"), "dim"), f"  {text}"))
        else:
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {self._left} left  {text}"
            self._console.print(Text(line), soft_wrap=True)

    def path(self, path: Path) -> str:
        """A path as `shown_path` gives it for this console."""
        return shown_path(self._console, path)

    def phase(self, text: str) -> None:
        """Announce the next phase of the run: above the progress bar on a terminal, as a line elsewhere."""
        self._phase = text
        if not self._console.is_terminal:
            self.say(text)

    def resume_at(self, step: int) -> None:
        """Start the bar at the step that a resumed run begins at."""
        self._progress.update(self._task, completed=step)

    def step(self, row: Mapping[str, float]) -> None:
        """Show a step's statistics."""
        self._row = row
        self._phase = "training"
        self._left.step(int(row["step"]), row["seconds/step"])
        self._progress.update(self._task, completed=int(row["step"]))
        if not self._console.is_terminal:
            self.say(f"step {int(row['step']):4d}/{self._steps}  {'  '.join(self._values())}")

    def held_out(self, split: str, step: int, scores: HeldOutScores) -> None:
        """Show a held-out score."""
        self._held_out[split] = (step, scores.by_family["all"])
        self._phase = "training"
        self.say(
            f"held-out {split} at step {step}: mean {self._metric} {scores.by_family['all']:.3f} "
            f"of {scores.pictures['all']} pictures"
        )

    def _values(self) -> list[str]:
        """The newest step's figures with their names."""
        row = self._row
        rewards = {name[7:]: f"{value:.3f}" for name, value in row.items() if name.startswith("reward/")}
        shown = rewards | {
            "kl": f"{row.get('kl', 0.0):.4f}",
            "staleness": f"{row['staleness/image']:.1f}",
            "pictures/s": f"{row['pictures_per_s']:.1f}",
            "s/step": f"{row['seconds/step']:.2f}",
        }
        return [f"{name} {value}" for name, value in shown.items()]

    def _render(self) -> Group:
        values = self._values() if self._row else []
        values += [f"held-out {split} @{step} {score:.3f}" for split, (step, score) in self._held_out.items()]
        return Group(Text(self._phase), self._progress, Columns(map(_figure, values), padding=(0, 3)))


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _figure(text: str) -> Text:
    """A name in grey, and its number."""
    name, _, number = text.rpartition(" ")
    return Text.assemble((f"{name} ", "dim"), number)


def held_out_table(metric: str, before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Scores before and after by family."""
    table = Table(title=f"Held-out test prompts: mean {metric}")
    table.add_column("family", overflow="fold")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for family in [*(name for name in after if name != "all"), "all"]:
        change = after[family] - before[family]
        style = "bold" if family == "all" else None
        table.add_row(Text(family), f"{before[family]:.3f}", f"{after[family]:.3f}", f"{change:+.3f}", style=style)
    return table
