"""The form of policy/'s scorer that the learner's engine wraps."""

from __future__ import annotations

import torch
from torch import Tensor

from policy.scoring import Distribution, Scorer, ScoreRows


class SegmentScorer(Scorer):
    """A scorer of rows of one segment. Its forward pass returns plain tensors, because ZeRO 3 sees no others."""

    def forward(self, rows: ScoreRows, distribution: Distribution = "guided") -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Log-probs and entropy [sum of T_i]."""
        scores = super().forward(rows, distribution)
        part = scores.text or scores.image
        assert part is not None
        return part.logprobs, part.entropy


def heads(scorer: Scorer) -> list[torch.nn.Parameter]:
    """The parameters of both heads; scoring uses their last matrices in chunks, without calling the modules."""
    return [*scorer.model.lm_head.parameters(), *scorer.model.model.generation_head.parameters()]
