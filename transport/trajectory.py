"""The trajectory group: one prompt, its G members, and all that the learner needs for training on them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from policy.prompts import PromptRecord


@dataclass(frozen=True, slots=True)
class SemanticSegment:
    """The semantic-level CoT of one member, as vLLM wrote it.

    `prompt_ids` [P] and `token_ids` [T] are int64, `logprobs` [T] float32: log-probabilities of the behaviour
    distribution (after temperature) at `weight_version`. `token_ids` ends in EOS when `finish_reason` is "stop".
    """

    prompt_ids: torch.Tensor
    token_ids: torch.Tensor
    logprobs: torch.Tensor
    temperature: float
    finish_reason: str
    weight_version: int


@dataclass(frozen=True, slots=True)
class ImageSegment:
    """The token-level CoT of one member, as the image sampler drew it.

    `prompt_ids` [P] is int64 and ends in the begin-of-image token; `token_ids` [N] is int64; both log-probs are
    float32 [N], of the conditional and of the guided distribution, each after temperature.
    """

    prompt_ids: torch.Tensor
    token_ids: torch.Tensor
    conditional_logprobs: torch.Tensor
    guided_logprobs: torch.Tensor
    guidance_scale: float
    temperature: float
    weight_version: int


@dataclass(frozen=True, slots=True)
class Member:
    """One rollout (s, t) and its rewards by name; None marks a missing reward, which is not zero."""

    seed: int
    semantic: SemanticSegment | None
    image: ImageSegment
    cot: str = ""
    rewards: dict[str, float | None] = field(default_factory=dict)
    png: bytes | None = None


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """One visit to one prompt. `index` is its place in the run's prompt order, and sorts a training batch."""

    id: str
    index: int
    visit: int
    prompt: PromptRecord
    members: tuple[Member, ...]

    @property
    def tokens(self) -> int:
        """Completion tokens of all members, both segments."""
        return sum(len(m.image.token_ids) + (len(m.semantic.token_ids) if m.semantic else 0) for m in self.members)
