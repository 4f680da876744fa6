"""Random trajectories for the tests of the learner."""

from __future__ import annotations

import copy

import torch

from policy.janus import Policy
from policy.lora import SCALE, adapter_name
from policy.prompts import PromptRecord
from policy.scoring import Scorer, ScoreRows, SegmentRows
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup

WEIGHTS = {"match": 1.0, "tidy": 0.5, "extra": 0.25}
COTS = ("", "red circle left", "blue square right of red circle", "the two circle", "green square above")


def random_groups(
    policy: Policy, groups: int, members: int, seed: int = 0, staleness: float = 0.3, guidance: float = 2.0
) -> list[TrajectoryGroup]:
    """Groups with tokens of any kind and behaviour log-probs as of a policy that is `staleness` off (in nats).

    Some members lack a reward, some a semantic segment; the last group lacks one reward altogether.
    """
    random = torch.Generator().manual_seed(seed)
    made = []
    for index in range(groups):
        record = PromptRecord(prompt=f"a red circle {index}", task_type="object", nouns=("circle",))
        made.append(
            TrajectoryGroup(
                id=f"{seed}-{index}",
                index=index,
                visit=0,
                prompt=record,
                members=tuple(
                    _member(policy, record.prompt, number, index == groups - 1, random, staleness, guidance)
                    for number in range(members)
                ),
            )
        )
    return made


def _member(
    policy: Policy,
    prompt: str,
    number: int,
    lacks: bool,
    random: torch.Generator,
    staleness: float,
    guidance: float,
) -> Member:
    layout = policy.layout
    cot = COTS[int(torch.randint(len(COTS), (), generator=random))]
    asked = torch.tensor(policy.prompts.semantic_prompt(prompt))
    shown = torch.tensor(policy.prompts.image_prompt(prompt, cot))
    length = int(torch.randint(1, 9, (), generator=random))
    text = torch.randint(layout.text_vocab, (length,), generator=random)
    image = torch.randint(layout.image_vocab, (layout.image_tokens,), generator=random)

    def noise(size: int) -> torch.Tensor:
        return staleness * torch.randn(size, generator=random)

    scorer = Scorer(policy.model, layout)
    drawn = SegmentRows([shown], [image], 1.1, guidance)
    with torch.no_grad():
        written = scorer(ScoreRows(text=SegmentRows([asked], [text], 0.9))).text
        conditional = scorer(ScoreRows(image=drawn), "conditional").image
        guided = scorer(ScoreRows(image=drawn), "guided").image
    assert written and conditional and guided
    rewards: dict[str, float | None] = {
        "match": float(torch.rand((), generator=random)),
        "tidy": None if number == 1 else float(torch.rand((), generator=random)),
        "extra": None if lacks else float(torch.rand((), generator=random)),
        "looked_at": 5.0,
    }
    return Member(
        seed=number,
        semantic=None
        if number == 2
        else SemanticSegment(asked, text, written.logprobs + noise(length), 0.9, "stop", 0),
        image=ImageSegment(
            shown,
            image,
            conditional.logprobs + noise(len(image)),
            guided.logprobs + noise(len(image)),
            guidance,
            1.1,
            0,
        ),
        cot=cot,
        rewards=rewards,
    )


def clone(policy: Policy) -> Policy:
    """A policy with weights of its own."""
    return Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.layout, policy.prompts)


def random_adapter(policy: Policy, weights: list[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """An adapter of rank 2 and scale 0.75 on these weights, as it is published."""
    random = torch.Generator().manual_seed(seed)
    state = policy.model.state_dict()
    tensors = {SCALE: torch.tensor([0.75], dtype=torch.float64)}
    for name in weights:
        out, size = state[name].shape
        tensors[adapter_name("A", name)] = torch.randn(2, size, generator=random)
        tensors[adapter_name("B", name)] = 0.1 * torch.randn(out, 2, generator=random)
    return tensors
