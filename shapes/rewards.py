"""The reward services of the shapes world, behind the same interface as the real ones.

| class | stands for | score |
| --- | --- | --- |
| Detector | GroundingDINO | existence, relation and count of `rewards.scoring.detections` |
| Attributes | a VQA model | mean over attribute phrases of how much the likest thing looks like it; else missing |
| Tidiness | HPS | clean background, well-formed things, no clutter |
| Strict | the judge | 1 when the picture shows exactly what was asked, else 0; for weight 0, as a held-out score |

The first three use the same detector; Strict uses an independent judge (`shapes.judge`).
"""

from __future__ import annotations

import numpy as np

from policy.prompts import PromptRecord
from rewards.base import Reward
from rewards.scoring.detections import score_prompt
from shapes import judge
from shapes.detector import Region, detect, find_regions
from shapes.world import BACKGROUND, SIZE, Thing, asked

_PLAIN = 40.0  # RGB distance up to which a pixel passes for background


class _ShapesReward(Reward):
    """A reward that looks at one picture at a time."""

    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        """Score pictures (uint8 [48, 48, 3]). Raises ValueError for another size, or a record of another world."""
        return [self._one(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]

    def _one(self, picture: np.ndarray, prompt: PromptRecord) -> float | None:
        raise NotImplementedError


class Detector(_ShapesReward):
    """Are the things there, in the right number and relation? Graded, in [0, 1]; extra things cost nothing here."""

    def _one(self, picture: np.ndarray, prompt: PromptRecord) -> float:
        return score_prompt(prompt, detect(picture), (SIZE, SIZE))


class Attributes(_ShapesReward):
    """Does each phrase, e.g. "red circle", fit something in the picture? In [0, 1]; None without phrases."""

    def _one(self, picture: np.ndarray, prompt: PromptRecord) -> float | None:
        if not prompt.attr_nouns:
            return None
        regions = find_regions(picture)
        fits = [
            max((region.likeness(Thing.named(phrase)) for region in regions), default=0.0)
            for phrase in prompt.attr_nouns
        ]
        return sum(fits) / len(fits)


class Tidiness(_ShapesReward):
    """Is it a good picture? In [0, 1], a product of three shares:

    pixels that are background or part of a thing; how well-formed the things are; and, where more things were found
    than asked for, asked / found. A picture without a thing scores 0.
    """

    def _one(self, picture: np.ndarray, prompt: PromptRecord) -> float:
        regions = find_regions(picture)
        if not regions:
            return 0.0
        form = sum(region.score for region in regions) / len(regions)
        return _cleanliness(picture, regions) * form * min(1.0, len(asked(prompt).things) / len(regions))


class Strict(_ShapesReward):
    """1 when the picture shows the right things, no others, in the right number and relation; else 0."""

    def _one(self, picture: np.ndarray, prompt: PromptRecord) -> float:
        return float(judge.is_right(prompt, picture))


def _cleanliness(picture: np.ndarray, regions: list[Region]) -> float:
    """Share of the pixels outside the things' boxes that are plain background."""
    outside = np.ones((SIZE, SIZE), dtype=bool)
    for region in regions:
        x1, y1, x2, y2 = region.box
        outside[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
    offset = picture.astype(np.float32) - np.array(BACKGROUND, dtype=np.float32)
    plain = np.linalg.norm(offset, axis=-1) <= _PLAIN
    return float((plain & outside).sum() / max(1, outside.sum()))
