"""The invariants of a healthy step: the first place to look when a run learns nothing or diverges.

Each line of `bicot rollout` and `bicot replay` is one `Invariant`: the value, its bound, and the reason.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import torch

from learner.advantages import GroupAdvantages, group_advantages
from learner.batching import SEGMENTS, Segment
from recipe.config import RunConfig
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup

if TYPE_CHECKING:  # checking drawn groups needs no learner
    from learner.replay import Replayed


@dataclass(frozen=True, slots=True)
class Invariant:
    """`ok` is None if the value has no bound here; then `text` says why."""

    subject: str
    text: str
    ok: bool | None = None

    def line(self) -> str:
        """The printed line."""
        mark = {True: "ok   ", False: "WRONG", None: "-    "}[self.ok]
        return f"{mark}  {self.subject}: {self.text}"


@dataclass(frozen=True, slots=True)
class Rounding:
    """Bounds of the rounding error: of the mean `ratio`, the widest `gap` of log-probs in nats, a mean `kl`, and, as
    a `share`, of a value of the same step trained twice.
    """

    ratio: float
    gap: float
    kl: float
    share: float


ROUNDING = {"float32": Rounding(1e-3, 1e-3, 1e-6, 1e-4), "bfloat16": Rounding(2e-2, 1.0, 1e-4, 2e-2)}
"""By `policy.dtype`. In bfloat16 two engines agree on average; at unlikely tokens they are tenths of a nat apart."""
ADVANTAGE = 1e-4
"""Largest mean advantage of a group, for advantages of about 1."""
WIDEST = ("logprob_gap_max/", "ratio_max/")
"""Prefixes of the names of metrics that a single token decides."""
UNEQUAL = ("seconds/", "mfu", "micro_batches")
"""Prefixes of the names of metrics that depend on the machine and not on the step."""


def of_groups(
    config: RunConfig, groups: Sequence[TrajectoryGroup], step: int, failures: Mapping[str, float] | None = None
) -> list[Invariant]:
    """The invariants of a step's trajectories; `failures` are counts by reward, if known."""
    return [
        _size(config, groups),
        _versions(config, groups, step),
        *(_tokens(name, segments) for name in SEGMENTS if (segments := _segments(groups, name))),
        *(_reward(name, weight, groups, failures) for name, weight in config.rewards.weights.items()),
        *_advantages(config, groups),
    ]


def of_training(config: RunConfig, groups: Sequence[TrajectoryGroup], replayed: Replayed) -> list[Invariant]:
    """The invariants of the learner's training on a step's groups."""
    metrics = replayed.metrics
    loss, norm = metrics["loss"], metrics["grad_norm"]
    signal = any(bool(scored.advantages.any()) for scored in _scored(config, groups))
    above = ", above 0 as rewards differ" if signal else ""
    return [
        _start(replayed),
        _trained(config, groups, metrics),
        *(found for name in SEGMENTS for found in _ratio(config, groups, replayed, name)),
        _kl(config, replayed),
        Invariant("loss", f"{loss:.6g}, finite", math.isfinite(loss)),
        Invariant(
            "gradient norm",
            f"{norm:.6g}, finite{above}; learning rate {metrics['lr']:.3g}",
            math.isfinite(norm) and (norm > 0 or not signal),
        ),
    ]


def beside(config: RunConfig, replayed: Replayed, row: Mapping[str, float], changed: bool) -> Invariant:
    """Whether the replay's numbers equal those of the run's own `row`; not judged if settings were `changed`."""
    bound = ROUNDING[config.policy.dtype]
    compared = {name: (ours, row[name]) for name, ours in shared(replayed.metrics, row).items()}
    apart = [
        name
        for name, (ours, theirs) in compared.items()
        if not equal(ours, theirs, bound.share, bound.gap if name.startswith(WIDEST) else bound.kl)
    ]
    same = sum(equal(ours, theirs) for ours, theirs in compared.values())
    text = f"{same} of {len(compared)} numbers are the same to the bit, {len(apart)} differ by more than rounding"
    if changed or not replayed.exact:
        why = "settings are changed" if changed else "it began with other weights"
        return Invariant("the run's own step", f"{text}; it need not be the same, for {why}")
    by = f" ({bound.share:g} of their value): {', '.join(apart)}" if apart else ""
    return Invariant("the run's own step", f"{text}{by}", not apart)


def equal(one: float, other: float, share: float = 0.0, least: float = 0.0) -> bool:
    """Whether two values of a metric agree, up to a share of them, or up to `least`; two NaN agree."""
    return math.isclose(one, other, rel_tol=share, abs_tol=least) or (math.isnan(one) and math.isnan(other))


def shared(metrics: Mapping[str, float], row: Mapping[str, float]) -> dict[str, float]:
    """The metrics that the row has too, without those that a machine, and not the step, decides."""
    theirs = {name for name, value in row.items() if isinstance(value, int | float) and not name.startswith(UNEQUAL)}
    return {name: value for name, value in metrics.items() if name in theirs}


def _size(config: RunConfig, groups: Sequence[TrajectoryGroup]) -> Invariant:
    asked = config.rollout
    sizes = sorted({len(group.members) for group in groups})
    right = len(groups) == asked.groups_per_step and sizes == [asked.group_size]
    text = f"{len(groups)} of {' or '.join(map(str, sizes))} members"
    return Invariant("groups", f"{text}, {asked.groups_per_step} of {asked.group_size} are asked for", right)


def _versions(config: RunConfig, groups: Sequence[TrajectoryGroup], step: int) -> Invariant:
    drew = {segment.weight_version for name in SEGMENTS for segment in _segments(groups, name)}
    oldest = max(0, step - 1 - config.rollout.staleness)
    allowed = f"{oldest} to {step - 1}" if oldest < step - 1 else f"{oldest}"
    text = f"version {_listed(drew)}; at staleness {config.rollout.staleness} step {step} takes {allowed}"
    return Invariant("weights that drew", text, all(oldest <= version <= step - 1 for version in drew))


def _tokens(name: Segment, segments: Sequence[SemanticSegment | ImageSegment]) -> Invariant:
    lengths = [len(segment.token_ids) for segment in segments]
    values = torch.cat([row for segment in segments for row in _logprobs(segment)])
    right = bool(values.isfinite().all()) and bool((values <= 1e-4).all())
    if name == "image":
        right &= len(set(lengths)) == 1
        each = "a picture" if len(set(lengths)) == 1 else "a picture, where all should have as many"
    else:
        cut = sum(isinstance(one, SemanticSegment) and one.finish_reason == "length" for one in segments)
        each = f"a CoT, {cut} of {len(segments)} cut off"
    span = f"{min(lengths)}" if min(lengths) == max(lengths) else f"{min(lengths)} to {max(lengths)}"
    mean = values.mean().item() if len(values) else math.nan
    text = f"{sum(lengths)}, {span} {each}; log-probs mean {mean:.3f}, finite and at most 0"
    return Invariant(f"{name} tokens", text, right)


def _reward(
    name: str, weight: float, groups: Sequence[TrajectoryGroup], failures: Mapping[str, float] | None
) -> Invariant:
    """A reward that does not apply may be missing for whole groups; a single member without it is masked."""
    scores = [[_value(member, name) for member in group.members] for group in groups]
    given = [score for group in scores for score in group if score is not None]
    without = sum(group.count(None) == len(group) for group in scores)
    masked = sum(group.count(None) for group in scores if group.count(None) < len(group))
    text = f"mean {fmean(given):.4f}, {min(given):.4f} to {max(given):.4f}, " if given else "none at all, "
    text += f"weight {weight:g}, {without} of {len(groups)} groups without it"
    if failed := (failures or {}).get(name, 0):
        return Invariant(f"reward {name}", f"{text}; its service failed {failed:g} times, see the logs", False)
    if masked:
        text += f"; {masked} members miss it whose group has it, and are not trained"
        return Invariant(f"reward {name}", text, False)
    if without:
        text += ", for it does not apply" if failures is not None else ": it does not apply, or its service failed"
    return Invariant(f"reward {name}", text, True if given or failures is not None else None)


def _advantages(config: RunConfig, groups: Sequence[TrajectoryGroup]) -> list[Invariant]:
    """Means over each group's trained members, and their standard deviation if their rewards differ."""
    rows = [row for scored in _scored(config, groups) if len(row := scored.advantages[scored.mask].tolist()) > 1]
    # Relative to the advantages' size; without objective.std it is the size of the rewards.
    mean = max((abs(fmean(row)) / max(1.0, *map(abs, row)) for row in rows), default=0.0)
    spreads = [stdev(row) for row in rows if any(row)]
    told = f"rewards differ in {len(spreads)} of {len(groups)} groups"
    objective = config.learner.objective
    bounded = objective.std and objective.normalise == "sum_then_normalise"  # to std / (std + eps)
    if spreads:
        told += f", spread {min(spreads):.3f} to {max(spreads):.3f}{', 1 at most' if bounded else ''}"
    else:
        told += ": nothing but the KL trains"
    right = max(spreads) <= 1 + ADVANTAGE if spreads and bounded else None
    return [
        Invariant("advantages, mean", f"{mean:.1e} at most, a group's is 0 within {ADVANTAGE:g}", mean <= ADVANTAGE),
        Invariant("advantages, spread", told, right),
    ]


def _start(replayed: Replayed) -> Invariant:
    weights = os.path.relpath(replayed.path) if replayed.path else "the policy's checkpoint"
    if replayed.between:
        weights += f", with steps {replayed.between[0]} to {replayed.between[-1]} trained again"
    if replayed.exact:
        return Invariant("weights that train", f"{weights}: what step {replayed.step} began with", True)
    text = f"{weights}: version {replayed.version}, where step {replayed.step} began with {replayed.step - 1}"
    return Invariant("weights that train", f"{text}; it is off-policy here, and other than in the run")


def _trained(config: RunConfig, groups: Sequence[TrajectoryGroup], metrics: Mapping[str, float]) -> Invariant:
    """Whether the learner counted exactly the tokens of the trained members."""
    own = dict.fromkeys(SEGMENTS, 0)
    for group, scored in zip(groups, _scored(config, groups), strict=True):
        for member, trains in zip(group.members, scored.mask.tolist(), strict=True):
            own["image"] += len(member.image.token_ids) * trains
            own["semantic"] += (len(member.semantic.token_ids) if member.semantic else 0) * trains
    counted = {name: metrics.get(f"tokens/{name}", 0) for name in SEGMENTS}
    told = ", ".join(f"{counted[name]:.0f} of {count} {name}" for name, count in own.items())
    return Invariant("tokens trained", f"{told}, all of the members with rewards", counted == own)


def _ratio(
    config: RunConfig, groups: Sequence[TrajectoryGroup], replayed: Replayed, name: Segment
) -> list[Invariant]:
    """Ratio and log-prob gap of one segment, judged if the same weight version drew and trains it."""
    metrics, bound = replayed.metrics, ROUNDING[config.policy.dtype]
    if f"ratio_mean/{name}" not in metrics:
        return []
    mean, gap = metrics[f"ratio_mean/{name}"], metrics[f"logprob_gap_max/{name}"]
    drew = {segment.weight_version for segment in _segments(groups, name)}
    if drew != {replayed.version}:
        text = f"mean {mean:.6f}, log-probs up to {gap:.3g} nats apart: drawn by {_listed(drew)}, trained from "
        return [Invariant(f"{name} ratio", f"{text}{replayed.version}")]
    return [
        Invariant(f"{name} ratio", f"mean {mean:.7f}, 1 within {bound.ratio:g}", abs(mean - 1) <= bound.ratio),
        Invariant(
            f"{name} log-probs",
            f"learner and actor {gap:.2g} nats apart, {bound.gap:g} at most in {config.policy.dtype}",
            gap <= bound.gap,
        ),
    ]


def _kl(config: RunConfig, replayed: Replayed) -> Invariant:
    kl, bound = replayed.metrics["kl"], ROUNDING[config.policy.dtype].kl
    if config.learner.objective.beta == 0:
        return Invariant("KL to the reference", "not measured, objective.beta is 0")
    if replayed.version == 0:
        text = f"{kl:.3g}, 0 within {bound:g}, for nothing is trained yet"
        return Invariant("KL to the reference", text, abs(kl) <= bound)
    return Invariant("KL to the reference", f"{kl:.6g}, never below 0", math.isfinite(kl) and kl >= -bound)


def _listed(versions: set[int]) -> str:
    return " and ".join(map(str, sorted(versions)))


def _scored(config: RunConfig, groups: Sequence[TrajectoryGroup]) -> list[GroupAdvantages]:
    weights, objective = config.rewards.weights, config.learner.objective
    return [group_advantages([member.rewards for member in group.members], weights, objective) for group in groups]


def _segments(groups: Sequence[TrajectoryGroup], name: Segment) -> list[SemanticSegment | ImageSegment]:
    members = [member for group in groups for member in group.members]
    found = [member.semantic if name == "semantic" else member.image for member in members]
    return [segment for segment in found if segment is not None]


def _logprobs(segment: SemanticSegment | ImageSegment) -> list[torch.Tensor]:
    if isinstance(segment, SemanticSegment):
        return [segment.logprobs]
    return [segment.conditional_logprobs, segment.guided_logprobs]


def _value(member: Member, name: str) -> float | None:
    value = member.rewards.get(name)
    return value if value is not None and math.isfinite(value) else None
