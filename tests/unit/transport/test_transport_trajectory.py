"""The trajectory group counts what its members wrote and drew."""

from __future__ import annotations

import torch

from policy.prompts import PromptRecord
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup


def member(written: int | None, drawn: int) -> Member:
    prompt = torch.arange(5)
    image = ImageSegment(prompt, torch.arange(drawn), torch.zeros(drawn), torch.zeros(drawn), 5.0, 1.0, 0)
    if written is None:
        return Member(0, None, image)
    return Member(0, SemanticSegment(prompt, torch.arange(written), torch.zeros(written), 1.0, "stop", 0), image)


def test_tokens_are_completions_of_both_segments() -> None:
    prompt = PromptRecord(prompt="p", task_type="object", nouns=("p",))
    members = (member(4, 6), member(None, 3), member(0, 2))
    assert TrajectoryGroup("g", 0, 0, prompt, members).tokens == 4 + 6 + 3 + 2
    assert TrajectoryGroup("g", 0, 0, prompt, ()).tokens == 0
