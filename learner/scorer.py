"""The scorer of policy/ as the learner's engine wraps it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

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
    """The parameters of both heads, which score one chunk of logits after another."""
    return [*scorer.model.lm_head.parameters(), *scorer.model.model.generation_head.parameters()]


def checkpoint_layers(model: JanusForConditionalGeneration) -> None:
    """Recompute the language model's layers in the backward pass.

    transformers does so in training mode only, which would switch dropout on; but the policy that is trained has to
    be the one that was sampled, so dropout goes.
    """
    language_model = model.model.language_model
    for layer in language_model.layers:
        layer.self_attn.attention_dropout = 0.0
    language_model.gradient_checkpointing_enable({"use_reentrant": False})
    language_model.train()
