"""From detected boxes to a score: existence, relation and count, whatever detector found the boxes.

Equation (5) of T2I-R1 (arXiv 2505.00703v2), with K objects in the prompt:

    relation in the prompt   0.6 R_spatial + 0.4 / K * sum_i [object i is there]
    counts in the prompt     1 / K * sum_i [number of object i is exact]
    else                     1 / K * sum_i [object i is there]

    R_spatial = 1 in the right direction and far enough apart, 0 in the wrong direction, else IoU

Boxes are (x1, y1, x2, y2) in pixels of the picture, y pointing down. Labels match a prompt's nouns as a whole,
but for case and spaces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from types import MappingProxyType

from policy.prompts import PromptRecord, SpatialInfo

Box = tuple[float, float, float, float]
"""Corners (x1, y1, x2, y2) in pixels."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that a detector found. Raises ValueError for a box that is not corner-format."""

    label: str
    score: float
    box: Box

    def __post_init__(self) -> None:
        x1, y1, x2, y2 = self.box
        if not (all(map(math.isfinite, self.box)) and x1 <= x2 and y1 <= y2):
            raise ValueError(f"{self.label!r}: box {self.box} is not (x1, y1, x2, y2), x1 <= x2 and y1 <= y2")


@dataclass(frozen=True, slots=True)
class ScoringRules:
    """The adjustable rules. The defaults follow the paper; the paper gives no thresholds, so these are ours.

    `distance` is in mean box extents along the relation's axis: 1 means that equal boxes just touch. `near` is
    a share of the picture's longer side: T2I-CompBench's 150 pixels on the 384 of a Janus-Pro picture.
    """

    relation_weight: float = 0.6
    distance: float = 0.5
    near: float = 150 / 384
    wrong_count: float = 0.0
    nms_iou: float = 0.5


PAPER = ScoringRules()

_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
LOCALITIES = MappingProxyType(
    {
        "left of": "left",
        "on the left of": "left",
        "right of": "right",
        "on the right of": "right",
        "above": "above",
        "on top of": "above",
        "on the top of": "above",
        "below": "below",
        "on the bottom of": "below",
        "next to": "near",
        "near": "near",
        "on side of": "near",
    }
)
"""Every locality of T2I-R1's prompt file, and the relation it means."""


class UnknownLocality(ValueError):
    """A prompt's `spatial_info.locality` that no rule scores."""


def score_prompt(
    record: PromptRecord,
    detections: Iterable[Detection],
    picture_size: tuple[int, int],
    box_threshold: float = 0.3,
    rules: ScoringRules = PAPER,
) -> float:
    """Score one picture of (width, height) pixels by what was found in it, in [0, 1].

    Raises:
        UnknownLocality: the record's locality is not one of LOCALITIES.
    """
    found = [d for d in detections if d.score > box_threshold]
    if record.spatial_info is not None:
        relation = _best_relation(record.spatial_info, found, picture_size, rules)
        return rules.relation_weight * relation + (1 - rules.relation_weight) * existence(record.nouns, found)
    if record.numeracy_info:
        exact = [len(instances(c.obj_name, found, rules.nms_iou)) == c.num for c in record.numeracy_info]
        return sum(1.0 if right else rules.wrong_count for right in exact) / len(exact)
    return existence(record.nouns, found)


def existence(nouns: Sequence[str], detections: Iterable[Detection]) -> float:
    """Share of the nouns that were found at least once."""
    labels = {_normal(d.label) for d in detections}
    return sum(_normal(noun) in labels for noun in nouns) / len(nouns)


def instances(noun: str, detections: Iterable[Detection], nms_iou: float = PAPER.nms_iou) -> list[Detection]:
    """Detections of one noun after non-maximum suppression, most confident first."""
    kept: list[Detection] = []
    mine = (d for d in detections if _normal(d.label) == _normal(noun))
    for candidate in sorted(mine, key=lambda d: -d.score):
        if all(iou(candidate.box, other.box) <= nms_iou for other in kept):
            kept.append(candidate)
    return kept


def without_twins(detections: Iterable[Detection], twin_iou: float = 0.9) -> list[Detection]:
    """Keep one name per thing: of nearly equal boxes with different names, the most confident stays."""
    kept: list[Detection] = []
    for candidate in sorted(detections, key=lambda d: -d.score):
        others = (d for d in kept if _normal(d.label) != _normal(candidate.label))
        if all(iou(candidate.box, other.box) <= twin_iou for other in others):
            kept.append(candidate)
    return kept


def relation(
    locality: str, first: Box, second: Box, picture_size: tuple[int, int], rules: ScoringRules = PAPER
) -> float:
    """How well box `first` stands `locality` box `second`, in [0, 1].

    A direction is right when the centres differ that way, and more than across it. Nearness is 1 up to the
    distance `rules.near` (the larger of the centres' horizontal and vertical distance) and falls as
    1 / distance beyond it.
    """
    kind = LOCALITIES.get(_normal(locality))
    if kind is None:
        raise UnknownLocality(f"locality {locality!r} is not one of: {', '.join(LOCALITIES)}")
    dx = (first[0] + first[2] - second[0] - second[2]) / 2
    dy = (first[1] + first[3] - second[1] - second[3]) / 2
    if kind == "near":
        limit, distance = rules.near * max(picture_size), max(abs(dx), abs(dy))
        return 1.0 if distance <= limit else limit / distance
    x, y = _DIRECTIONS[kind]
    along, across = x * dx + y * dy, abs(y * dx + x * dy)
    if along <= across:
        return 0.0
    low, high = (0, 2) if x else (1, 3)
    extent = (first[high] - first[low] + second[high] - second[low]) / 2
    return 1.0 if along > rules.distance * extent else iou(first, second)


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, 0 where both are empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = _area(first) + _area(second) - intersection
    return intersection / union if union > 0 else 0.0


def _best_relation(
    info: SpatialInfo, found: list[Detection], picture_size: tuple[int, int], rules: ScoringRules
) -> float:
    """Relation of the most confident pair, 0 if one is absent. Two objects of one name may be in either order."""
    if _normal(info.obj1) == _normal(info.obj2):
        pairs = list(permutations(instances(info.obj1, found, rules.nms_iou)[:2], 2))
    else:
        firsts, seconds = (instances(name, found, rules.nms_iou)[:1] for name in (info.obj1, info.obj2))
        pairs = list(zip(firsts, seconds, strict=False))
    scores = [relation(info.locality, a.box, b.box, picture_size, rules) for a, b in pairs]
    return max(scores, default=0.0)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _normal(phrase: str) -> str:
    return " ".join(phrase.lower().split())
