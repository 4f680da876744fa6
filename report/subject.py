"""One sentence about the training of runs, and the meaning of each of their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from recipe.public_config import flat_keys
from report.runs import ReportRun, RunGroup


@dataclass(frozen=True, slots=True)
class Score:
    """A reward: what it judges, its weight in training, and the number of pictures behind one figure."""

    name: str
    meaning: str
    weight: str
    pictures: str


def sentence(group: RunGroup) -> str:
    """One sentence about a group's runs: checkpoint, prompts, rewards, size of a step, number of steps."""
    run = group.runs[0]
    keys = flat_keys(run.config)
    rewards = [f"{name} ({service.get('weight', 1.0):g})" for name, service in _services(run).items()
               if service.get("weight", 1.0)]  # fmt: skip
    groups, members = keys.get("rollout.groups_per_step", 0), keys.get("rollout.group_size", 0)
    parts = [
        f"{keys.get('policy.checkpoint', 'A policy')} was trained with BiCoT-GRPO",
        f"on {_prompts(run, 'train')}{keys.get('prompts.train', '?')}",
        f"by the reward{'s' if len(rewards) > 1 else ''} {_listed(rewards)}",
    ]
    steps = f"{_range([one.step for one in group.runs])} of {keys.get('steps', '?')} steps"
    how = [
        f"{steps} of {groups} groups x {members} members, so {groups * members} pictures each",
        f"drawn at guidance scale {keys.get('image.guidance_scale', '?')}",
        *(["without a semantic CoT"] if keys.get("semantic.enabled") is False else []),
        *([f"a LoRA adapter of rank {keys['learner.lora.rank']} trained"] if "learner.lora.rank" in keys else []),
    ]
    several = f" in each of {len(group.runs)} runs" if len(group.runs) > 1 else ""
    return f"{' '.join(parts)}{several}: {', '.join(how)}."


def scores(groups: Sequence[RunGroup]) -> list[Score]:
    """Every reward of the groups; if groups differ, with the value of each group."""
    runs = [group.runs[0] for group in groups]
    found = []
    for name in dict.fromkeys(name for run in runs for name in _services(run)):
        having = [run for run in runs if name in _services(run)]
        meanings = [text for run in having if (text := run.training.get("rewards", {}).get(name))]
        weights = [f"{_services(run)[name].get('weight', 1.0):g}" for run in having]
        pictures = [_pictures(run, name) for run in having]
        found.append(Score(name, meanings[0] if meanings else "", _distinct(weights), _distinct(pictures)))
    return found


def held_out_pictures(run: ReportRun, split: str) -> dict[str, int]:
    """Pictures of one scoring by family, "all" included: scored ones if the run recorded that, else drawn ones."""
    recorded = [row["pictures"] for row in run.scorings(split) if "pictures" in row]
    if recorded:
        return dict(recorded[-1])
    prompts = run.training.get("prompts", {}).get(split)
    if not prompts:
        return {}
    members = (run.config.get("held_out") or {}).get(f"{split}_members", 1)
    return {name: count * members for name, count in prompts.items()} | {"all": sum(prompts.values()) * members}


def _services(run: ReportRun) -> dict[str, dict[str, Any]]:
    services = (run.config.get("rewards") or {}).get("services") or []
    return {service["name"]: service for service in services}


def _prompts(run: ReportRun, split: str) -> str:
    families = run.training.get("prompts", {}).get(split)
    return f"{sum(families.values()):,} prompts of " if families else ""


def _pictures(run: ReportRun, name: str) -> str:
    """Such as "64 pictures a step; held-out: dev 120, test 1,200"; fewer where it does not apply to all."""
    keys = flat_keys(run.config)
    drawn = keys.get("rollout.groups_per_step", 0) * keys.get("rollout.group_size", 0)
    missing = fmean(row.get(f"reward_missing/{name}", 0.0) for row in run.rows) if run.rows else 0.0
    told = f"{drawn} pictures a step"
    if missing >= 0.5:
        told = f"{drawn - missing:.0f} of {told} on average"
    held_out = [
        f"{split} {counts['all']:,}"
        for split in ("dev", "test")
        if name == run.metric and run.scorings(split) and (counts := held_out_pictures(run, split))
    ]
    return f"{told}; held-out: {', '.join(held_out)}" if held_out else told


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _distinct(values: Sequence[str]) -> str:
    return " / ".join(dict.fromkeys(values))
