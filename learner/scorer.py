"""The scorer of policy/ as the learner's engine wraps it."""

from __future__ import annotations

import torch
from torch import Tensor

from policy.scoring import Distribution, Scorer, ScoreRows


class SegmentScorer(Scorer):
    """A scorer of rows of one segment, whose forward pass returns tensors: ZeRO 3 sees no others."""

    def forward(self, rows: ScoreRows, distribution: Distribution = "guided") -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Log-probs and entropy [sum of T_i]."""
        scores = super().forward(rows, distribution)
        part = scores.text or scores.image
        assert part is not None
        return part.logprobs, part.entropy


def heads(scorer: Scorer) -> list[torch.nn.Parameter]:
    """The parameters of both heads, whose last matrices score chunk after chunk without a call of their modules."""
    return [*scorer.model.lm_head.parameters(), *scorer.model.model.generation_head.parameters()]
