"""The charts of a report; thin lines are runs, thick lines the mean of a group's runs.

With one group: one chart per topic, one colour per metric. With several: one chart per metric, one colour per group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean

from report.chart import Chart, Line, Points, smooth
from report.runs import ReportRun, RunGroup

TASK_PREFIX = "reward_by_task/"
"""Metrics named reward_by_task/REWARD/TASK_TYPE."""

_WINDOW_SHARE, _UNSMOOTHED = 0.06, 15


@dataclass(frozen=True, slots=True)
class Topic:
    """Charts that belong together; `main` topics are open from the start."""

    title: str
    note: str
    charts: list[Chart]
    main: bool = True


@dataclass(frozen=True, slots=True)
class _Asked:
    """A topic's metrics, by name or by prefix (ending in '/')."""

    title: str
    note: str
    names: tuple[str, ...]
    main: bool = False


_TOPICS = (
    _Asked("Reward", "mean over the step's pictures", ("reward/",), main=True),
    _Asked("KL to the reference", "k3 estimate per token, nats", ("kl", "kl/"), main=True),
    _Asked("Entropy", "of the next token, nats", ("entropy/",), main=True),
    _Asked("Length of the semantic CoT", "tokens", ("cot/tokens",), main=True),
    _Asked("CoTs cut off", "share that ended at the token limit", ("cot/cut_off",)),
    _Asked("Clipped share", "of the tokens", ("clip_fraction/",)),
    _Asked("Gradient norm", "before clipping", ("grad_norm",)),
    _Asked("Groups without signal", "share whose members all got the same reward", ("zero_spread/",)),
    _Asked("Diversity", "share of image tokens that differ within a group", ("diversity/",)),
    _Asked("Entropy of pictures", "of grey levels, bits", ("picture/entropy",)),
    _Asked("Edges in pictures", "share of pixels", ("picture/edges",)),
    _Asked("Staleness", "weight versions between sampling and training", ("staleness/",)),
    _Asked("Seconds of a step", "waiting for rollout is idle learner time", ("seconds/",)),
    _Asked("Pictures per second", "of a training step", ("pictures_per_s",)),
    _Asked("Model FLOPs utilisation", "of the learner", ("mfu",)),
)


def window(groups: Sequence[RunGroup]) -> int:
    """Steps over which thick lines of step metrics are averaged; 1 for short runs."""
    longest = max((run.step for group in groups for run in group.runs), default=0)
    return max(1, round(longest * _WINDOW_SHARE)) if longest > _UNSMOOTHED else 1


def step_topics(groups: Sequence[RunGroup]) -> list[Topic]:
    """Metrics of the training steps; topics that no run has are left out."""
    names = list(dict.fromkeys(name for group in groups for run in group.runs for row in run.rows for name in row))
    span = window(groups)
    topics = []
    for asked in _TOPICS:
        found = [name for name in names if any(_matches(name, one) for one in asked.names)]
        titles = {name: name.partition("/")[2] or "all" for name in found}
        charts = _charts(groups, asked.title, asked.note, titles, span)
        if charts:
            topics.append(Topic(asked.title, asked.note, charts, asked.main))
    return topics


def task_topics(groups: Sequence[RunGroup]) -> list[Topic]:
    """Each reward by the task type of its prompts; empty for runs that did not record it."""
    names = sorted({name for group in groups for run in group.runs for row in run.rows for name in row
                    if name.startswith(TASK_PREFIX)})  # fmt: skip
    rewards = list(dict.fromkeys(name.split("/")[1] for name in names))
    topics: list[Topic] = []
    for reward in rewards:
        prefix = f"{TASK_PREFIX}{reward}/"
        titles = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        charts = _charts(groups, reward, "by task type", titles, 2 * window(groups))
        topics.append(Topic(reward, "mean over the step's pictures of a task type", charts, not topics))
    return topics


def held_out_topics(groups: Sequence[RunGroup]) -> list[Topic]:
    """Scores over the steps of every split that was scored more than twice."""
    topics = []
    for split in ("dev", "test"):
        scorings = {run.name: run.scorings(split) for group in groups for run in group.runs}
        if max(map(len, scorings.values()), default=0) > 2:
            families = {family: None for rows in scorings.values() for row in rows for family in row["scores"]}
            ordered = sorted(families, key=lambda family: family != "all")
            lines = {
                family: [_line(group, [_scores(scorings[run.name], family) for run in group.runs], 0.0)
                         for group in groups]
                for family in ordered
            }  # fmt: skip
            title, note = f"Held-out {split}", "by family"
            topics.append(Topic(title, note, _arranged(groups, title, note, lines, dots=True)))
    return topics


def _scores(rows: Iterable[dict[str, dict[str, float]]], family: str) -> Points:
    return [(float(row["step"]), row["scores"][family]) for row in rows if family in row["scores"]]  # type: ignore[arg-type]


def _matches(name: str, wanted: str) -> bool:
    return name.startswith(wanted) if wanted.endswith("/") else name == wanted


def _charts(groups: Sequence[RunGroup], title: str, note: str, titles: dict[str, str], span: float) -> list[Chart]:
    """`titles` by metric, in order."""
    lines = {
        text: [_line(group, [_values(run, name) for run in group.runs], span) for group in groups]
        for name, text in titles.items()
    }
    return _arranged(groups, title, note, lines)


def _values(run: ReportRun, name: str) -> Points:
    """The metric's finite values."""
    return [(row["step"], row[name]) for row in run.rows if isfinite(row.get(name, nan))]


def _line(group: RunGroup, runs: Sequence[Points], span: float) -> Line:
    mean = _mean(runs)
    thick = smooth(mean, span) if span > 1 else mean
    several = len(runs) > 1 or span > 1
    return Line(group.label, thick, runs if several else ())


def _mean(runs: Sequence[Points]) -> Points:
    """Mean over the runs that have a value, up to the last step that all of them have."""
    with_values = [run for run in runs if run]
    if len(with_values) < 2:
        return with_values[0] if with_values else []
    end = min(run[-1][0] for run in with_values)
    tables = [dict(run) for run in with_values]
    steps = sorted({x for table in tables for x in table if x <= end})
    return [(x, fmean(table[x] for table in tables if x in table)) for x in steps]


def _arranged(
    groups: Sequence[RunGroup], title: str, note: str, lines: dict[str, list[Line]], dots: bool = False
) -> list[Chart]:
    """`lines` by metric, one per group."""
    lines = {name: of_groups for name, of_groups in lines.items() if any(line.thick for line in of_groups)}
    if not lines:
        return []
    if len(groups) == 1:
        named = [Line(name, of_groups[0].thick, of_groups[0].thin) for name, of_groups in lines.items()]
        return [Chart(title, named, note, dots)]
    return [Chart(name if len(lines) > 1 else title, of_groups, "", dots) for name, of_groups in lines.items()]
