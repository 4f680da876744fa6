"""BiCoT-GRPO in one file, straight from the equations, in float64: what the learner has to equal.

It imports nothing of learner/ and nothing that scores: every member is run alone through the plain model, with the
full logits of every position, and autograd does the rest.

    A_i  = (R_i - mean R) / (std R + 1e-4),   R = sum of weighted rewards
    loss = sum over tokens of both segments [ -min(r A, clip(r, 1 - low, 1 + high) A) + beta k3 ] / number of tokens
    r    = exp(logp - logp_behaviour),   k3 = exp(ref - logp) - (ref - logp) - 1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policy.tokens import TokenLayout
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup


@dataclass(frozen=True)
class Reference:
    """The settings of the equations; `clip` None switches clipping off."""

    distribution: str = "guided"
    clip: tuple[float, float] | None = (0.2, 0.2)
    beta: float = 0.01
    std: bool = True
    semantic_weight: float = 1.0
    image_weight: float = 1.0


def text_logprobs(model: Any, segment: SemanticSegment) -> Tensor:
    ids = torch.cat([segment.prompt_ids, segment.token_ids])
    logits = model(input_ids=ids[None], use_cache=False).logits[0].double()
    distribution = torch.log_softmax(logits / segment.temperature, dim=-1)
    start = len(segment.prompt_ids)
    return torch.stack([distribution[start + i - 1, token] for i, token in enumerate(segment.token_ids)])


def image_logprobs(model: Any, segment: ImageSegment, distribution: str, layout: TokenLayout) -> Tensor:
    conditional = image_logits(model, segment.prompt_ids, segment.token_ids)
    logits = conditional
    if distribution == "guided":
        bare = segment.prompt_ids.clone()
        for i, token in enumerate(bare.tolist()):
            if token not in (layout.bos, layout.boi):
                bare[i] = layout.pad
        unconditional = image_logits(model, bare, segment.token_ids)
        logits = unconditional + segment.guidance_scale * (conditional - unconditional)
    log_probs = torch.log_softmax(logits / segment.temperature, dim=-1)
    return torch.stack([log_probs[i, token] for i, token in enumerate(segment.token_ids)])


def image_logits(model: Any, prompt_ids: Tensor, token_ids: Tensor) -> Tensor:
    text = model.get_input_embeddings()(prompt_ids[None])
    image = model.model.generation_aligner(model.model.generation_embeddings(token_ids[None]))
    inputs = torch.cat([text, image], dim=1)
    states = model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]
    return model.model.generation_head(states).double()[len(prompt_ids) - 1 : -1]


def advantages(members: tuple[Member, ...], weights: dict[str, float], std: bool) -> list[float | None]:
    """One a member; None where a member lacks a reward that another has, for all where fewer than two are left."""
    names = [n for n in weights if any(m.rewards.get(n) is not None for m in members)]
    scale = sum(weights.values()) / sum(weights[n] for n in names) if names else 1.0
    totals: dict[int, float] = {}
    for i, member in enumerate(members):
        scores = [(weights[n], member.rewards.get(n)) for n in names]
        if scores and all(score is not None for _, score in scores):
            totals[i] = scale * sum(weight * score for weight, score in scores if score is not None)
    if len(totals) < 2:
        return [None] * len(members)
    mean = sum(totals.values()) / len(totals)
    spread = math.sqrt(sum((total - mean) ** 2 for total in totals.values()) / (len(totals) - 1))
    divisor = spread + 1e-4 if std else 1.0
    return [(totals[i] - mean) / divisor if i in totals else None for i in range(len(members))]


def loss(
    model: Any,
    reference_model: Any,
    groups: list[TrajectoryGroup],
    weights: dict[str, float],
    layout: TokenLayout,
    config: Reference,
) -> Tensor:
    """The loss of the whole batch; `model` and `reference_model` are Janus models in float64."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for group in groups:
        for member, advantage in zip(group.members, advantages(group.members, weights, config.std), strict=True):
            if advantage is None:
                continue
            guided = config.distribution == "guided"
            behaviour = member.image.guided_logprobs if guided else member.image.conditional_logprobs

            parts = [("image", behaviour, config.image_weight)]
            if member.semantic is not None:
                parts.append(("semantic", member.semantic.logprobs, config.semantic_weight))

            def score(model: Any, segment: str, member: Member = member) -> Tensor:
                if segment == "image":
                    return image_logprobs(model, member.image, config.distribution, layout)
                assert member.semantic is not None
                return text_logprobs(model, member.semantic)

            for segment, old, weight in parts:
                logprobs = score(model, segment)
                with torch.no_grad():
                    frozen = score(reference_model, segment) if config.beta else logprobs
                ratio = torch.exp(logprobs - old.double())
                gain = ratio * advantage
                if config.clip:
                    low, high = config.clip
                    gain = torch.min(gain, torch.clamp(ratio, 1 - low, 1 + high) * advantage)
                gap = frozen - logprobs
                total = total + (-weight * gain + config.beta * (torch.exp(gap) - gap - 1)).sum()
                tokens += len(logprobs)
    return total / tokens
