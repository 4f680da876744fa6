"""What a person sees of a run: a live display on a terminal, a line a step elsewhere, and a table at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:  # the console speaks before Ray and torch are imported
    from evaluation.held_out import HeldOutScores


def own_console() -> Console:
    """A console on a copy of stdout, so that stdout itself can go to a log with all that libraries print."""
    sys.stdout.flush()
    return Console(file=os.fdopen(os.dup(1), "w", encoding="utf-8"), highlight=False)


class RunDisplay:
    """Shows a run's progress. Use as a context manager."""

    def __init__(self, console: Console, steps: int, metric: str | None) -> None:
        self._console = console
        self._metric = metric
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
            TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"), console=console,
        )  # fmt: skip
        self._task = self._progress.add_task("starting", total=steps)
        self._row: Mapping[str, float] = {}
        self._held_out: dict[str, tuple[int, float]] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)
        self._steps = steps
        self._began = time.monotonic()

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
        """Print one line that stays, with the seconds since the start."""
        self._console.print(f"[dim]{time.monotonic() - self._began:6.1f}s[/dim]  {text}", soft_wrap=True)

    def phase(self, text: str) -> None:
        """Say what the run is about to do; on a terminal in the progress bar, elsewhere as a line."""
        self._progress.update(self._task, description=text)
        if not self._console.is_terminal:
            self.say(text)

    def resume_at(self, step: int) -> None:
        """Start the bar at a step that earlier work reached."""
        self._progress.update(self._task, completed=step)

    def step(self, row: Mapping[str, float]) -> None:
        """Show a step's statistics."""
        self._row = row
        self._progress.update(self._task, completed=int(row["step"]), description="training")
        if not self._console.is_terminal:
            rewards = "  ".join(f"{name} {value:.3f}" for name, value in self._rewards().items())
            self.say(
                f"step {int(row['step']):4d}/{self._steps}  {rewards}  kl {row.get('kl', 0.0):.4f}  "
                f"{row['pictures_per_s']:.1f} pictures/s  stale {row['staleness/image']:.1f}"
            )

    def held_out(self, split: str, step: int, scores: HeldOutScores) -> None:
        """Show a held-out score."""
        self._held_out[split] = (step, scores.by_family["all"])
        self.say(
            f"held-out {split} at step {step}: mean {self._metric} {scores.by_family['all']:.3f} "
            f"of {scores.pictures} pictures"
        )

    def _rewards(self) -> dict[str, float]:
        return {name[7:]: value for name, value in self._row.items() if name.startswith("reward/")}

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 3))
        row = self._row
        if row:
            shown = {name: f"{value:.3f}" for name, value in self._rewards().items()}
            shown |= {
                "kl": f"{row.get('kl', 0.0):.4f}",
                "staleness": f"{row['staleness/image']:.1f}",
                "pictures/s": f"{row['pictures_per_s']:.1f}",
                "s/step": f"{row['seconds/step']:.2f}",
            }
            for split, (step, score) in self._held_out.items():
                shown[f"held-out {split} @{step}"] = f"{score:.3f}"
            table.add_row(*(f"[dim]{name}[/dim]" for name in shown))
            table.add_row(*shown.values())
        return Group(self._progress, table)


def held_out_table(metric: str, before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Scores before and after by family."""
    table = Table(title=f"Held-out test prompts: mean {metric}")
    for heading in ("family", "before", "after", "change"):
        table.add_column(heading, justify="left" if heading == "family" else "right")
    for family in [*(name for name in after if name != "all"), "all"]:
        change = after[family] - before[family]
        style = "bold" if family == "all" else None
        table.add_row(family, f"{before[family]:.3f}", f"{after[family]:.3f}", f"{change:+.3f}", style=style)
    return table
