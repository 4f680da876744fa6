"""The BiCoT-GRPO objective as pure functions on tensors (T2I-R1, arXiv 2505.00703).

    loss = sum over tokens of both segments [ -min(r A, clip(r, 1 - low, 1 + high) A) + beta k3 ] / number of tokens
    r  = exp(logp - logp_behaviour)
    k3 = exp(logp_reference - logp) - (logp_reference - logp) - 1

The functions return *sums* over tokens. The caller divides by the number of tokens of the whole global batch; this
makes the update independent of ranks, micro-batches and packing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from learner.config import ObjectiveConfig


@dataclass(frozen=True, slots=True)
class SegmentStats:
    """Statistics of one segment over its trained tokens: 0-dimensional float64 tensors without gradient.

    All are sums, except the two maxima. `loss` is what `segment_loss` returns; `reference_kl` sums k3 to the
    reference, `behaviour_kl` the same estimate of KL(behaviour, new); `clipped` counts tokens whose gradient the clip
    cut off; `entropy` is in nats; `gap_max` is the largest |logp - logp_behaviour|.
    """

    tokens: Tensor
    loss: Tensor
    reference_kl: Tensor
    behaviour_kl: Tensor
    clipped: Tensor
    ratio: Tensor
    entropy: Tensor
    ratio_max: Tensor
    gap_max: Tensor

    @classmethod
    def empty(cls, device: torch.device) -> SegmentStats:
        """The statistics of no token."""
        return cls(*torch.zeros(len(fields(cls)), dtype=torch.float64, device=device))

    def per_token(self) -> dict[str, float]:
        """Means over the tokens, by metric name; needs at least one token."""
        tokens = self.tokens.item()
        return {
            "tokens": tokens,
            "kl": self.reference_kl.item() / tokens,
            "behaviour_kl": self.behaviour_kl.item() / tokens,
            "entropy": self.entropy.item() / tokens,
            "clip_fraction": self.clipped.item() / tokens,
            "ratio_mean": self.ratio.item() / tokens,
            "ratio_max": self.ratio_max.item(),
            "logprob_gap_max": self.gap_max.item(),
        }

    def __add__(self, other: SegmentStats) -> SegmentStats:
        sums = [getattr(self, name) + getattr(other, name) for name in SUMS]
        return SegmentStats(*sums, *(torch.maximum(getattr(self, name), getattr(other, name)) for name in MAXIMA))


MAXIMA = ("ratio_max", "gap_max")
SUMS = tuple(field.name for field in fields(SegmentStats) if field.name not in MAXIMA)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy, reference) at tokens that the policy drew; never negative. Elementwise."""
    gap = reference - logprobs
    return torch.expm1(gap) - gap


def surrogate(ratio: Tensor, advantages: Tensor, config: ObjectiveConfig) -> Tensor:
    """The surrogate to maximise, per token: min(r A, clip(r) A), or r A without the clip. Elementwise."""
    if not config.clip:
        return ratio * advantages
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def segment_loss(
    logprobs: Tensor,
    behaviour: Tensor,
    reference: Tensor | None,
    entropy: Tensor,
    advantages: Tensor,
    weight: float,
    config: ObjectiveConfig,
) -> tuple[Tensor, SegmentStats]:
    """The loss summed over the tokens of one segment (0-dimensional, with gradient), and its statistics.

    Args:
        logprobs: new log-probs [tokens], with gradient.
        behaviour: log-probs at the time of sampling [tokens].
        reference: log-probs of the frozen reference [tokens]; None where beta is 0.
        entropy: entropy of the new distribution, in nats [tokens].
        advantages: each token's member's advantage [tokens].
        weight: policy-gradient weight of the segment; it does not apply to the KL.
    """
    ratio = torch.exp(logprobs - behaviour)
    loss = -weight * surrogate(ratio, advantages, config).sum()
    kl = logprobs.new_zeros(())
    if reference is not None:
        kl = k3(logprobs, reference).sum()
        loss = loss + config.beta * kl
    with torch.no_grad():
        gap = logprobs - behaviour
        cut = ((ratio < 1 - config.clip_low) & (advantages < 0)) | ((ratio > 1 + config.clip_high) & (advantages > 0))
        values = (
            torch.tensor(len(gap), device=gap.device),
            loss,
            kl,
            k3(-gap, torch.zeros_like(gap)).sum(),
            cut.sum() * config.clip,
            ratio.sum(),
            entropy.sum(),
            ratio.max(),
            gap.abs().max(),
        )
        return loss, SegmentStats(*(value.double() for value in values))
