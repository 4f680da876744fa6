"""Rows of trajectory groups to balanced micro-batches, the same plan on every rank.

A row is one segment of one member that trains. Every rank sees all groups and makes the whole plan, so ranks agree on
the number and the kinds of micro-batches without talking: under ZeRO each forward and backward pass is a collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.advantages import GroupAdvantages
from policy.scoring import Distribution, ScoreRows, SegmentRows
from transport.trajectory import ImageSegment, SemanticSegment, TrajectoryGroup

Segment = Literal["semantic", "image"]
SEGMENTS: tuple[Segment, ...] = ("semantic", "image")


@dataclass(frozen=True, slots=True)
class Kind:
    """What the rows of one micro-batch share."""

    segment: Segment
    temperature: float
    guidance_scale: float


@dataclass(frozen=True, slots=True)
class Row:
    """One segment to be trained: `prompt_ids` [P], `token_ids` [T], `behaviour` [T] log-probs; `cost` in tokens."""

    kind: Kind
    prompt_ids: Tensor
    token_ids: Tensor
    behaviour: Tensor
    advantage: float
    cost: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one kind that share a forward and backward pass.

    A `filler` keeps a rank in step with ranks that have more rows; it is scored, and adds nothing to the loss.
    """

    kind: Kind
    rows: tuple[Row, ...]
    filler: bool = False

    @property
    def tokens(self) -> int:
        """Completion tokens that train."""
        return 0 if self.filler else sum(len(row.token_ids) for row in self.rows)

    def score_rows(self) -> ScoreRows:
        """What the scorer needs of these rows."""
        rows = SegmentRows(
            prompts=[row.prompt_ids for row in self.rows],
            completions=[row.token_ids for row in self.rows],
            temperature=self.kind.temperature,
            guidance_scale=self.kind.guidance_scale,
        )
        return ScoreRows(text=rows) if self.kind.segment == "semantic" else ScoreRows(image=rows)

    def behaviour(self, device: torch.device) -> Tensor:
        """Behaviour log-probs, row after row [sum of T_i]."""
        return torch.cat([row.behaviour for row in self.rows]).to(device)

    def advantages(self, device: torch.device) -> Tensor:
        """Advantages [sum of T_i], each member's for all its tokens."""
        lengths = torch.tensor([len(row.token_ids) for row in self.rows])
        return torch.tensor([row.advantage for row in self.rows]).repeat_interleave(lengths).to(device)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """`micro_batches[rank]`: as many, and of the same kinds in the same order, on every rank.

    `tokens` counts the completion tokens of the whole batch, both segments: what the loss is divided by.
    """

    micro_batches: tuple[tuple[MicroBatch, ...], ...]
    tokens: int


def training_rows(
    groups: Sequence[TrajectoryGroup], advantages: Sequence[GroupAdvantages], distribution: Distribution
) -> list[Row]:
    """The rows of all members that train, group after group; members that are masked have none."""
    rows: list[Row] = []
    for group, scored in zip(groups, advantages, strict=True):
        for member, trains, advantage in zip(
            group.members, scored.mask.tolist(), scored.advantages.tolist(), strict=True
        ):
            if not trains:
                continue
            if member.semantic is not None and len(member.semantic.token_ids):
                rows.append(_semantic_row(member.semantic, advantage))
            rows.append(_image_row(member.image, advantage, distribution))
    return rows


def _semantic_row(segment: SemanticSegment, advantage: float) -> Row:
    cost = len(segment.prompt_ids) + len(segment.token_ids) - 1
    kind = Kind("semantic", segment.temperature, 1.0)
    return Row(kind, segment.prompt_ids, segment.token_ids, segment.logprobs, advantage, cost)


def _image_row(segment: ImageSegment, advantage: float, distribution: Distribution) -> Row:
    guided = distribution == "guided"
    # Guided rows are scored twice, with and without their prompt.
    forwards = 2 if guided and segment.guidance_scale != 1.0 else 1
    cost = forwards * (len(segment.prompt_ids) + len(segment.token_ids) - 1)
    behaviour = segment.guided_logprobs if guided else segment.conditional_logprobs
    kind = Kind("image", segment.temperature, segment.guidance_scale)
    return Row(kind, segment.prompt_ids, segment.token_ids, behaviour, advantage, cost)


def plan_batch(rows: Sequence[Row], ranks: int, micro_batch_tokens: int) -> BatchPlan:
    """Balance rows over ranks by their cost, and pack each rank's into micro-batches.

    A micro-batch holds at most `micro_batch_tokens` padded tokens, guided rows counted twice; a longer row has one of
    its own. The plan depends on its arguments only.
    """
    plans: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    for kind in sorted({row.kind for row in rows}, key=_order):
        ordered = sorted((row for row in rows if row.kind == kind), key=lambda row: -row.cost)
        packed = [_pack(kind, share, micro_batch_tokens) for share in _balance(ordered, ranks)]
        filler = MicroBatch(kind, (ordered[-1],), filler=True)
        for plan, batches in zip(plans, packed, strict=True):
            plan += batches + [filler] * (max(map(len, packed)) - len(batches))
    return BatchPlan(tuple(map(tuple, plans)), sum(len(row.token_ids) for row in rows))


def _order(kind: Kind) -> tuple[int, float, float]:
    return SEGMENTS.index(kind.segment), kind.temperature, kind.guidance_scale


def _balance(ordered: Sequence[Row], ranks: int) -> list[list[Row]]:
    """Longest processing time first: each row, the costliest first, goes to the rank with the least to do."""
    shares: list[list[Row]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for row in ordered:
        rank = loads.index(min(loads))
        shares[rank].append(row)
        loads[rank] += row.cost
    return shares


def _pack(kind: Kind, ordered: Sequence[Row], micro_batch_tokens: int) -> list[MicroBatch]:
    """Neighbours in descending order of cost share a micro-batch, so that the first row sets the padding."""
    batches: list[list[Row]] = []
    for row in ordered:
        if batches and batches[-1][0].cost * (len(batches[-1]) + 1) <= micro_batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return [MicroBatch(kind, tuple(batch)) for batch in batches]
