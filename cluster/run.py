"""A training run from start to end: check, start, train, score, report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from cluster.console import RunDisplay, held_out_table, shown_path
from cluster.loop import Progress
from cluster.pools.worker import log_to
from cluster.system import System
from recipe.config import RunConfig
from recipe.errors import RunError, StageError, first_cause
from recipe.run_folder import RunFolder, write_atomically
from recipe.training_facts import write_training_facts
from report.files import read_held_out
from report.page import write_report
from report.runs import duration, read_runs

logger = logging.getLogger(__name__)

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130


def train(config: RunConfig, console: Console, resume: bool, fresh: bool) -> int:
    """Train to the end; returns the exit code. The output of libraries goes to the run folder's logs.

    If the run fails, the console gets one sentence. Call `check.require` first.

    Raises:
        RunError: the folder holds another run.
    """
    folder = RunFolder(config.folder)
    if aside := folder.create(config, resume, fresh):
        console.print(f"the earlier run is in {shown_path(console, aside)} now", style="dim", soft_wrap=True)
    write_training_facts(folder, config)
    log_to(folder.logs / "driver.log")
    display = RunDisplay(console, config.steps, config.held_out.metric if config.held_out else None)
    try:
        with display:
            summary = asyncio.run(_Run(config, folder, display, resume).run())
    except asyncio.CancelledError:
        summary = None
    except Exception as error:  # any error: one sentence for the console, the traceback for the log
        logger.exception("the run failed")
        _tell_failure(console, folder, first_cause(error))
        return EXIT_FAILED
    if summary is None:
        where = shown_path(console, folder.path)
        text = Text.assemble("Stopped. The same command with ", ("--resume", "bold"), f" goes on with {where}.")
        console.print(text, soft_wrap=True)
        return EXIT_INTERRUPTED
    _tell_success(console, folder, config, summary)
    return 0


@dataclass(slots=True)
class _Run:
    config: RunConfig
    folder: RunFolder
    display: RunDisplay
    resume: bool
    progress: Progress = field(default_factory=Progress)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    async def run(self) -> Mapping[str, Any] | None:
        """The run's summary; None when it was stopped on request."""
        self._stop_on_signals()
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            system = await System.start(self.config, self.folder, self.display, stack, self.resume)
            self._stop_on_signals()  # set again: Ray's own SIGTERM handler would end the process within three seconds
            if system.telemetry.address:
                self.display.say(
                    f"metrics at {system.telemetry.address}, logs in {self.display.path(self.folder.logs)}"
                )
            first = self.progress.resume_at(system.position, self.config.rollout.groups_per_step)
            self.display.resume_at(first)
            self._earlier_scores()
            if first == 0:
                await self._score(system, 0, "dev", "test")

            async def after_step(step: int, row: dict[str, float]) -> None:
                system.telemetry.step(row)
                self.display.step(row)
                if self.config.held_out and step % self.config.held_out.every == 0:
                    await self._score(system, step, "dev")

            await system.run(self.progress, after_step)
            if self.progress.step < self.config.steps:
                return None
            if "test" in system.splits:
                await self._score(system, self.progress.step, "test")
            self.display.phase("writing the policy")
            await system.ranks.export()
            return self._summary(first, time.monotonic() - began)

    async def _score(self, system: System, step: int, *splits: str) -> None:
        for split in splits:
            if split in system.splits:
                self.display.phase(f"scoring held-out {split} prompts")
                scores = await system.score(split, step)
                self.display.held_out(split, step, scores)
                self.scores.setdefault(f"{split}_before", scores.by_family)
                self.scores[f"{split}_after"] = scores.by_family

    def _earlier_scores(self) -> None:
        """The scores from before the first step of the run; a resumed run is compared with them."""
        for row in read_held_out(self.folder.held_out):
            self.scores.setdefault(f"{row['split']}_before", row["scores"])
            self.scores[f"{row['split']}_after"] = row["scores"]

    def _summary(self, first: int, seconds: float) -> Mapping[str, Any]:
        """The summary of a finished run, `seconds` after it was started, or resumed at step `first`."""
        run = read_runs([self.folder])[0]
        rows = run.rows[-10:]
        names = sorted({name for row in rows for name in row if name.startswith("reward/")})
        summary = {
            "status": "finished",
            "steps": self.config.steps,
            "seconds": round(seconds, 1),
            "resumed_at": first,
            "step_seconds": round(run.seconds, 1),
            "pictures_per_s": round(run.pictures_per_s or 0.0, 2),
            "held_out": self.scores,
            "rewards": {
                name.removeprefix("reward/"): sum(row.get(name, 0.0) for row in rows)
                / sum(name in row for row in rows)
                for name in names
            },
            "report": str(self.folder.report),
        }
        write_atomically(self.folder.summary, json.dumps(summary, indent=1))
        return summary

    def _stop_on_signals(self) -> None:
        """The first Ctrl-C ends the run after its step, with a checkpoint; the second at once."""
        main = asyncio.current_task()
        assert main

        def stop() -> None:
            if self.progress.stop or not self.progress.training:
                main.cancel()
            else:
                self.progress.stop = True
                self.display.say("stopping after this step, with a checkpoint; Ctrl-C again stops at once")

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)


def _tell_failure(console: Console, folder: RunFolder, error: BaseException) -> None:
    name = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
    console.print("The run failed.", style="red")
    console.print(f"{name}{error}", markup=False, soft_wrap=True)
    if isinstance(error, StageError) and error.log_tail:
        console.print("The end of that process's log:", style="dim")
        console.print(error.log_tail, markup=False, soft_wrap=True)
    console.print(Text(f"Logs: {shown_path(console, folder.logs)}"), soft_wrap=True)


def _tell_success(console: Console, folder: RunFolder, config: RunConfig, summary: Mapping[str, Any]) -> None:
    """The last lines of a run that ended well, which a report that cannot be written does not change."""
    try:
        told = f"Report: {shown_path(console, write_report(folder))}"
    except Exception as error:
        logger.exception("the report was not written")
        told = f"The report was not written: {error}. `bicot report {shown_path(console, folder.path)}` tries again."
    scores = summary["held_out"]
    if config.held_out and "test_after" in scores:
        console.print(held_out_table(config.held_out.metric, scores["test_before"], scores["test_after"]))
    since = "since it was resumed" if summary["resumed_at"] else "in all"
    console.print(
        f"{summary['steps']} steps in {duration(summary['step_seconds'])}, {summary['pictures_per_s']:.1f} "
        f"pictures/s; {duration(summary['seconds'])} {since}, start and scoring included",
        soft_wrap=not console.is_terminal,
    )
    console.print(Text(told), soft_wrap=True)
