"""The trajectory group counts what its members wrote and drew."""

from __future__ import annotations

import zlib

import torch

from policy.prompts import PromptRecord
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup
from transport.wire import pack


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


def test_bytes_begin_as_the_format_says() -> None:
    """A reader of another version must be able to tell: the format and its number change together."""
    prompt = PromptRecord(prompt="p", task_type="object", nouns=("p",))
    data = pack(TrajectoryGroup("g", 0, 0, prompt, (member(4, 6),)))
    assert data[:6] == b"BCTG\x00\x02" and data[6:10] == zlib.crc32(data[10:]).to_bytes(4, "big")
