"""Rows of trajectory groups to balanced micro-batches, the same plan on every rank.

A row is one segment of one member that trains. Under ZeRO each forward and backward pass is a collective, so ranks
must agree on the number and the kinds of micro-batches. They agree without communication: every rank sees all groups
and makes the whole plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.advantages import GroupAdvantages
from policy.packing import PrefixTree
from policy.scoring import Distribution, ScoreRows, SegmentRows
from policy.tokens import TokenLayout, unconditional
from transport.trajectory import ImageSegment, SemanticSegment, TrajectoryGroup

Segment = Literal["semantic", "image"]
SEGMENTS: tuple[Segment, ...] = ("semantic", "image")


@dataclass(frozen=True, slots=True)
class Kind:
    """The properties that all rows of one micro-batch share."""

    segment: Segment
    temperature: float
    guidance_scale: float


@dataclass(frozen=True, slots=True)
class Row:
    """One segment to be trained: `prompt_ids` [P], `token_ids` [T], `behaviour` [T] log-probs.

    `prompts` are the prompts for scoring: `prompt_ids`, and for guidance also the unconditional prompt.
    """

    kind: Kind
    prompt_ids: Tensor
    token_ids: Tensor
    behaviour: Tensor
    advantage: float
    prompts: tuple[tuple[int, ...], ...]

    @property
    def cost(self) -> int:
        """Positions of the row if it shared none; ranks are balanced by this number."""
        return sum(map(len, self.prompts)) + self.own

    @property
    def own(self) -> int:
        """Positions after the prompts, which no other row can share."""
        return len(self.prompts) * (len(self.token_ids) - 1)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one kind that share a forward and backward pass; `positions` counts shared prompts once.

    A `filler` keeps a rank in step with ranks that have more rows; it is scored but adds nothing to the loss.
    """

    kind: Kind
    rows: tuple[Row, ...]
    positions: int
    filler: bool = False

    @property
    def tokens(self) -> int:
        """Completion tokens that train."""
        return 0 if self.filler else sum(len(row.token_ids) for row in self.rows)

    def score_rows(self) -> ScoreRows:
        """The scorer's input for these rows."""
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

    `tokens` counts the completion tokens of the whole batch, both segments; the loss is divided by it.
    """

    micro_batches: tuple[tuple[MicroBatch, ...], ...]
    tokens: int


def training_rows(
    groups: Sequence[TrajectoryGroup],
    advantages: Sequence[GroupAdvantages],
    distribution: Distribution,
    layout: TokenLayout,
) -> list[Row]:
    """The rows of all members that train, group after group; masked members have none."""
    rows: list[Row] = []
    for group, scored in zip(groups, advantages, strict=True):
        for member, trains, advantage in zip(
            group.members, scored.mask.tolist(), scored.advantages.tolist(), strict=True
        ):
            if not trains:
                continue
            if member.semantic is not None and len(member.semantic.token_ids):
                rows.append(_semantic_row(member.semantic, advantage))
            rows.append(_image_row(member.image, advantage, distribution, layout))
    return rows


def _semantic_row(segment: SemanticSegment, advantage: float) -> Row:
    prompts = (tuple(segment.prompt_ids.tolist()),)
    kind = Kind("semantic", segment.temperature, 1.0)
    return Row(kind, segment.prompt_ids, segment.token_ids, segment.logprobs, advantage, prompts)


def _image_row(segment: ImageSegment, advantage: float, distribution: Distribution, layout: TokenLayout) -> Row:
    guided = distribution == "guided"
    prompts = [segment.prompt_ids]
    if guided and segment.guidance_scale != 1.0:
        prompts.append(unconditional(segment.prompt_ids, layout))
    behaviour = segment.guided_logprobs if guided else segment.conditional_logprobs
    kind = Kind("image", segment.temperature, segment.guidance_scale)
    ids = tuple(tuple(prompt.tolist()) for prompt in prompts)
    return Row(kind, segment.prompt_ids, segment.token_ids, behaviour, advantage, ids)


def plan_batch(rows: Sequence[Row], ranks: int, micro_batch_tokens: int) -> BatchPlan:
    """Balance rows over ranks by their cost, and pack each rank's into micro-batches.

    Rows keep their order, so the rows of a group, which share prompts, stay together. No rank's cost exceeds an even
    share by more than the cost of one row. A micro-batch has at most `micro_batch_tokens` positions; guided rows
    count twice and shared positions once. A longer row gets its own micro-batch. The plan depends only on the
    arguments.
    """
    plans: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    for kind in sorted({row.kind for row in rows}, key=_order):
        of_kind = [row for row in rows if row.kind == kind]
        packed = [_pack(kind, share, micro_batch_tokens) for share in _balance(of_kind, ranks)]
        cheapest = min(of_kind, key=lambda row: row.cost)
        filler = MicroBatch(kind, (cheapest,), _Positions().add(cheapest), filler=True)
        for plan, batches in zip(plans, packed, strict=True):
            plan += batches + [filler] * (max(map(len, packed)) - len(batches))
    return BatchPlan(tuple(map(tuple, plans)), sum(len(row.token_ids) for row in rows))


def _order(kind: Kind) -> tuple[int, float, float]:
    return SEGMENTS.index(kind.segment), kind.temperature, kind.guidance_scale


def _balance(rows: Sequence[Row], ranks: int) -> list[list[Row]]:
    """Cut the rows into one piece per rank: the middle of a row decides in which even share of the cost it falls."""
    shares: list[list[Row]] = [[] for _ in range(ranks)]
    total, before = sum(row.cost for row in rows), 0
    for row in rows:
        shares[(2 * before + row.cost) * ranks // (2 * total)].append(row)
        before += row.cost
    return shares


def _pack(kind: Kind, rows: Sequence[Row], micro_batch_tokens: int) -> list[MicroBatch]:
    """Pack the rows in order, as many per micro-batch as fit."""
    batches: list[MicroBatch] = []
    some: list[Row] = []
    seen, positions = _Positions(), 0
    for row in rows:
        grown = seen.add(row)
        if some and grown > micro_batch_tokens:
            batches.append(MicroBatch(kind, tuple(some), positions))
            seen, some = _Positions(), []
            grown = seen.add(row)
        some.append(row)
        positions = grown
    return [*batches, MicroBatch(kind, tuple(some), positions)] if some else batches


class _Positions:
    """Counts the positions of rows that are packed together, as the scorer packs them."""

    def __init__(self) -> None:
        self._prompts, self._own = PrefixTree(), 0

    def add(self, row: Row) -> int:
        """Add a row; positions of all rows so far."""
        for prompt in row.prompts:
            self._prompts.add(prompt)
        self._own += row.own
        return len(self._prompts) + self._own
