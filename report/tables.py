"""The tables of a report: runs, held-out scores by family, seconds by phase and stage, environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from report.runs import ReportRun, RunGroup, Spread
from report.subject import held_out_pictures

STAGE_PREFIX = "stage_seconds/"
"""Metrics named stage_seconds/STAGE: how long a group took in a stage of the rollout."""

_LAST_STEPS = 10


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """Held-out scores of one family in one group: first and last scoring; None if there was only one."""

    before: Spread | None
    after: Spread | None
    change: Spread | None


@dataclass(frozen=True, slots=True)
class HeldOutTable:
    """`steps` says for each group at which steps its runs were scored; `rows` have one score per group.

    `pictures` has for each group the pictures by family of one scoring of its first run, if known.
    """

    split: str
    metric: str
    steps: list[str]
    rows: list[tuple[str, list[HeldOutScore]]]
    pictures: list[dict[str, int]]

    @property
    def all(self) -> list[HeldOutScore]:
        """The mean over all pictures, one score per group."""
        return self.rows[-1][1]


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run, or the mean of a group's runs. `rewards` are those of the last ten steps."""

    group: int
    label: str
    seed: str
    status: str
    steps: Spread
    minutes: Spread | None
    seconds_in_all: Spread | None
    pictures_per_s: Spread | None
    score: HeldOutScore | None
    rewards: dict[str, Spread]
    mean: bool


@dataclass(frozen=True, slots=True)
class Phase:
    """Mean seconds of a step in one phase, and its share of the step."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True, slots=True)
class Timing:
    """The time of a group's steps. `stages` are those of rollouts; they overlap with each other and the step."""

    label: str
    step_seconds: float
    phases: list[Phase]
    stages: list[tuple[str, float]]
    outside: float | None


def held_out_table(groups: Sequence[RunGroup]) -> HeldOutTable | None:
    """Scores of the most informative split: test if scored twice in every run, else dev, else any scored one."""
    runs = [run for group in groups for run in group.runs]
    splits = [
        split for wanted, of in ((2, all), (2, any), (1, any)) for split in ("test", "dev")
        if of(len(run.scorings(split)) >= wanted for run in runs)
    ]  # fmt: skip
    if not splits:
        return None
    split = splits[0]
    families = {family: None for run in runs for row in run.scorings(split) for family in row["scores"]}
    ordered = sorted(families, key=lambda family: family == "all")
    rows = [(family, [_held_out_score(group, split, family) for group in groups]) for family in ordered]
    metrics = dict.fromkeys(run.metric for run in runs)
    pictures = [held_out_pictures(group.runs[0], split) for group in groups]
    return HeldOutTable(split, ", ".join(metrics), [_steps(group, split) for group in groups], rows, pictures)


def _held_out_score(group: RunGroup, split: str, family: str) -> HeldOutScore:
    before, after, change = [], [], []
    for run in group.runs:
        scores = [row["scores"][family] for row in run.scorings(split) if family in row["scores"]]
        before += scores[:1]
        if len(scores) > 1:
            after.append(scores[-1])
            change.append(scores[-1] - scores[0])
    return HeldOutScore(Spread.of(before), Spread.of(after), Spread.of(change))


def _steps(group: RunGroup, split: str) -> str:
    scorings = [rows for run in group.runs if (rows := run.scorings(split))]
    if not scorings:
        return "not scored"
    last = sorted({rows[-1]["step"] for rows in scorings})
    return f"step {scorings[0][0]['step']} → " + (f"{last[0]}" if len(last) == 1 else f"{last[0]}..{last[-1]}")


def run_rows(groups: Sequence[RunGroup], split: str | None) -> list[RunRow]:
    """One row per run, and a row with the mean after the runs of a group of several."""
    rows = []
    for number, group in enumerate(groups):
        rows += [_run_row(number, RunGroup((run,)), split) for run in group.runs]
        if len(group.runs) > 1:
            rows.append(_run_row(number, group, split))
    return rows


def _run_row(number: int, group: RunGroup, split: str | None) -> RunRow:
    runs = group.runs
    steps = Spread.of([run.step for run in runs])
    assert steps
    return RunRow(
        number, group.label if len(runs) == 1 else f"mean of {len(runs)} runs",
        ", ".join(str(run.config.get("seed", "")) for run in runs),
        f"{sum(run.finished for run in runs)} of {len(runs)} finished" if len(runs) > 1 else _status(runs[0]),
        steps, Spread.of([run.seconds / 60 for run in runs]), Spread.of([run.seconds_in_all for run in runs]),
        Spread.of([run.pictures_per_s for run in runs]),
        _held_out_score(group, split, "all") if split else None, _last_rewards(group), len(runs) > 1,
    )  # fmt: skip


def _status(run: ReportRun) -> str:
    return "finished" if run.finished else f"unfinished, step {run.step} of {run.config.get('steps', '?')}"


def _last_rewards(group: RunGroup) -> dict[str, Spread]:
    """Each reward over the last ten steps of the group's runs."""
    names = dict.fromkeys(
        name for run in group.runs for row in run.rows for name in row if name.startswith("reward/")
    )
    table = {name.removeprefix("reward/"): Spread.of([_mean(run.rows[-_LAST_STEPS:], name) for run in group.runs])
             for name in names}  # fmt: skip
    return {name: spread for name, spread in table.items() if spread}


def timing(group: RunGroup) -> Timing | None:
    """None if no step was taken.

    A step waits for its groups, trains on them and publishes the weights; all other `seconds/...` are phases of
    training. `outside` are the mean seconds of finished runs outside all steps: start, scoring, checkpoints.
    """
    rows = [row for run in group.runs for row in run.rows]
    step = _mean(rows, "seconds/step")
    if not step:
        return None
    own = {"seconds/step", "seconds/wait_for_rollout", "seconds/train", "seconds/publish"}
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("seconds/") and name not in own)
    inner = {f"train: {name.removeprefix('seconds/').replace('_', ' ')}": _mean(rows, name) or 0.0 for name in names}
    wait, train, publish = (
        _mean(rows, f"seconds/{name}") or 0.0 for name in ("wait_for_rollout", "train", "publish")
    )
    phases = {"wait for rollout": wait, **inner}
    phases["train: the rest"] = train - sum(inner.values())
    phases["publish weights"] = publish
    phases["the rest of the step"] = step - wait - train - publish
    stages = dict.fromkeys(name for row in rows for name in row if name.startswith(STAGE_PREFIX))
    finished = [run.seconds_in_all - run.seconds for run in group.runs if run.seconds_in_all is not None]
    return Timing(
        group.label, step,
        [Phase(name, seconds, seconds / step) for name, seconds in phases.items() if seconds > 0.0005 * step],
        [(name.removeprefix(STAGE_PREFIX), _mean(rows, name) or 0.0) for name in stages],
        fmean(finished) if finished else None,
    )  # fmt: skip


def environment_table(runs: Sequence[ReportRun]) -> list[tuple[str, list[str]]]:
    """Facts of each run's environment, one value if all runs agree; "" if a run lacks the fact."""
    facts = [_environment(run.environment or {}) for run in runs]
    table = {
        name: [one.get(name, "") for one in facts] for name in dict.fromkeys(name for one in facts for name in one)
    }
    return [(name, values[:1] if len(set(values)) == 1 else values) for name, values in table.items()]


def _environment(tree: dict[str, Any]) -> dict[str, str]:
    machine = tree.get("machine", {})
    facts = {
        "started": tree.get("started"),
        "bicot": " ".join(filter(None, [tree.get("packages", {}).get("bicot"), tree.get("commit")])),
        "Python": tree.get("python"),
        **{name: text for name, text in tree.get("packages", {}).items() if name != "bicot"},
        "system": machine.get("system"),
        "processor": machine.get("processor"),
        "cores": machine.get("cores"),
        "memory": f"{machine['memory_gb']:g} GiB" if "memory_gb" in machine else None,
        "GPUs": "; ".join(machine.get("gpus", [])) or ("none" if machine else None),
        "Ray nodes": "; ".join(map(_node, tree.get("nodes", []))),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _node(node: dict[str, Any]) -> str:
    accelerators = f" ({node['accelerators']})" if node.get("accelerators") else ""
    return f"{node['nodes']} with {node['cpus']:g} CPUs, {node['gpus']:g} GPUs{accelerators}"


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return fmean(values) if values else None
