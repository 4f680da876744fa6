"""Detections scored as T2I-R1's released code does (CaraJ7/T2I-R1 at 2d9d4d1), departures from the paper included.

Use `rewards.scoring: t2i_r1_code` to reproduce its runs; `rewards.scoring.detections` has the paper's rules. Boxes
are relative to the picture, in [0, 1], as in that code, so distances do not depend on the picture's size.
"""

from __future__ import annotations

from collections.abc import Iterable

from policy.prompts import PromptRecord, SpatialInfo
from rewards.scoring.detections import Box, Detection, iou

EXISTENCE = 0.2  # of each of two objects, and half the relation: the scale ends at 0.9
WRONG_COUNT = 0.2
IOU = 0.1
NMS_IOU = 0.5
MOST_WORDS = 2  # a longer noun is looked up by its first and last word, which no name equals

_DIRECTIONS = {
    "on the left of": (-1, 0),
    "left of": (-1, 0),
    "on the right of": (1, 0),
    "right of": (1, 0),
    "on the top of": (0, -1),
    "top of": (0, -1),
    "on the bottom of": (0, 1),
    "below": (0, 1),
}
_NEAR = ("next to", "on side of", "near")


def score_prompt(
    record: PromptRecord, detections: Iterable[Detection], picture_size: tuple[int, int], box_threshold: float = 0.3
) -> float:
    """Score one picture of (width, height) pixels: relations up to 0.9, counts and existence up to 1."""
    width, height = picture_size
    found = [
        Detection(d.label, d.score, (d.box[0] / width, d.box[1] / height, d.box[2] / width, d.box[3] / height))
        for d in detections
        if d.score > box_threshold and len(d.label.split(" ")) <= MOST_WORDS
    ]
    if record.task_type == "spatial" and record.spatial_info is not None:
        return _spatial(record.spatial_info, found)
    if record.task_type == "numeracy" and record.numeracy_info:
        counts = [_count(c.obj_name, c.num, found) for c in record.numeracy_info]
        return sum(counts) / len(counts)
    labels = {d.label for d in found}
    return sum(noun in labels for noun in record.nouns) / len(record.nouns)


def relation(locality: str, first: Box, second: Box) -> float:
    """How well relative box `first` stands `locality` box `second`; 0 for a locality that the code has no branch for.

    Nearness compares distances of at most 1 with 150 pixels, so it always holds.
    """
    if locality in _NEAR:
        return 1.0
    x, y = _DIRECTIONS.get(locality, (0, 0))
    dx = (first[0] + first[2] - second[0] - second[2]) / 2
    dy = (first[1] + first[3] - second[1] - second[3]) / 2
    if x * dx + y * dy <= abs(y * dx + x * dy):
        return 0.0
    overlap = iou(first, second)
    return 1.0 if overlap < IOU else IOU / overlap


def _spatial(info: SpatialInfo, found: list[Detection]) -> float:
    firsts, seconds = ([d for d in found if d.label == name] for name in (info.obj1, info.obj2))
    if not firsts or not seconds:
        return EXISTENCE * (bool(firsts) + bool(seconds))
    if info.obj1 == info.obj2:
        return 0.0  # the code raises here, and scores 0 for it
    first, second = (max(those, key=lambda d: d.score) for those in (firsts, seconds))
    return 2 * EXISTENCE + relation(info.locality, first.box, second.box) / 2


def _count(name: str, number: int, found: list[Detection]) -> float:
    mine = [d for d in found if d.label == name]
    if not mine:
        return 0.0
    return 1.0 if len(_suppressed(mine)) == number else WRONG_COUNT


def _suppressed(detections: list[Detection]) -> list[Detection]:
    """Non-maximum suppression that reads (centre x, centre y, width, height) as if they were corners."""
    kept: list[Detection] = []
    for candidate in sorted(detections, key=lambda d: -d.score):
        if all(_mistaken_iou(candidate.box, other.box) <= NMS_IOU for other in kept):
            kept.append(candidate)
    return kept


def _mistaken_iou(first: Box, second: Box) -> float:
    a, b = (((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1) for x1, y1, x2, y2 in (first, second))
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0
