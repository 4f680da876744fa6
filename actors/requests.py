"""Requests to the rollout pools and their results; plain data that passes between processes."""

from __future__ import annotations

from dataclasses import dataclass

from policy.pictures import Picture
from transport.trajectory import ImageSegment, SemanticSegment


@dataclass(frozen=True, slots=True)
class SemanticRequest:
    """A semantic-level CoT for `prompt`, drawn with `seed`."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class SemanticOutput:
    """The CoT as tokens and as text (`cot`: without special tokens, with the drawn space around it)."""

    segment: SemanticSegment
    cot: str


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A picture of `prompt` with the plan `cot` (empty for none), drawn with `seed`."""

    prompt: str
    cot: str
    seed: int


@dataclass(frozen=True, slots=True)
class ImageOutput:
    """The picture as tokens and as uint8 pixels [height, width, 3]."""

    segment: ImageSegment
    picture: Picture
