"""Box arithmetic of both scoring rules, on boxes of which every coordinate counts."""

from __future__ import annotations

import pytest

from policy.prompts import PromptRecord
from rewards.scoring import detections, t2i_r1_code
from rewards.scoring.detections import Box, Detection, ScoringRules, iou

NARROW: Box = (0.2, 0.3, 0.4, 0.7)  # centre (0.3, 0.5)
BESIDE: Box = (0.45, 0.2, 0.65, 0.4)  # centre (0.55, 0.3): 0.25 to the right, 0.2 up
ABOVE: Box = (0.4, 0.1, 0.6, 0.24)  # centre (0.5, 0.17): 0.2 to the right, 0.33 up
OPPOSITE = {"left of": "right of", "right of": "left of", "on the top of": "below", "below": "on the top of"}


def both(locality: str, first: Box, second: Box) -> tuple[float, float]:
    """The paper's relation and the code's."""
    return detections.relation(locality, first, second, (1, 1)), t2i_r1_code.relation(locality, first, second)


@pytest.mark.parametrize(
    ("locality", "first", "second"),
    [
        ("left of", NARROW, BESIDE),
        ("right of", BESIDE, NARROW),
        ("below", NARROW, ABOVE),
        ("on the top of", ABOVE, NARROW),
    ],
)
def test_a_relation_holds_in_the_direction_in_which_the_centres_differ_most(
    locality: str, first: Box, second: Box
) -> None:
    assert both(locality, first, second) == (1.0, 1.0)
    others = [other for other in OPPOSITE if other != locality]
    assert [both(other, first, second) for other in others] == [(0.0, 0.0)] * 3
    assert both(OPPOSITE[locality], second, first) == (1.0, 1.0)


def test_a_diagonal_is_no_direction() -> None:
    first, second = (0.0, 0.0, 0.25, 0.25), (0.5, 0.5, 0.75, 0.75)
    assert [both(locality, first, second) for locality in OPPOSITE] == [(0.0, 0.0)] * 4


def test_intersection_over_union() -> None:
    wide, tall = (1.0, 2.0, 7.0, 5.0), (3.0, 1.0, 5.0, 9.0)  # 6 x 3 and 2 x 8, shared 2 x 3
    assert iou(wide, tall) == iou(tall, wide) == pytest.approx(6 / (18 + 16 - 6))
    assert iou(wide, (8.0, 6.0, 9.0, 7.0)) == iou((8.0, 6.0, 9.0, 7.0), wide) == 0.0  # apart both ways
    assert iou(wide, (8.0, 2.0, 9.0, 5.0)) == iou(wide, (1.0, 6.0, 7.0, 7.0)) == 0.0  # apart one way
    assert iou((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0)) == 0.0


def test_far_enough_is_a_share_of_the_mean_extent() -> None:
    first, second = (0.0, 0.0, 4.0, 10.0), (3.0, 0.0, 9.0, 10.0)  # 4 and 6 wide, centres 4 apart
    assert detections.relation("left of", first, second, (1, 1), ScoringRules(distance=0.79)) == 1.0
    overlap = 10 / (40 + 60 - 10)
    assert detections.relation("left of", first, second, (1, 1), ScoringRules(distance=0.8)) == pytest.approx(overlap)
    upright = [(x1, y1, x2, y2) for y1, x1, y2, x2 in (first, second)]
    assert detections.relation("above", *upright, (1, 1), ScoringRules(distance=0.79)) == 1.0
    assert detections.relation("above", *upright, (1, 1), ScoringRules(distance=0.8)) == pytest.approx(overlap)


def test_nearness_falls_with_the_larger_of_both_distances() -> None:
    first, size = (10.0, 20.0, 30.0, 40.0), (200, 400)  # near is 400 * 150 / 384 = 156.25 pixels
    assert detections.relation("near", first, (166.25, 30.0, 186.25, 50.0), size) == 1.0
    assert detections.relation("near", first, (200.0, 30.0, 220.0, 50.0), size) == pytest.approx(156.25 / 190)
    assert detections.relation("near", first, (20.0, 300.0, 40.0, 340.0), size) == pytest.approx(156.25 / 290)


def test_the_codes_overlap_reads_centre_and_size_as_corners() -> None:
    # (centre, size) are (0.4, 0.32, 0.8, 0.6) and (0.51, 0.3, 0.82, 0.4).
    first, second = (0.0, 0.02, 0.8, 0.62), (0.1, 0.1, 0.92, 0.5)
    shared = (0.8 - 0.51) * (0.4 - 0.32)
    expected = shared / (0.4 * 0.28 + 0.31 * 0.1 - shared)
    assert t2i_r1_code._mistaken_iou(first, second) == pytest.approx(expected)
    assert t2i_r1_code._mistaken_iou(second, first) == pytest.approx(expected)
    assert t2i_r1_code._mistaken_iou((0.7, 0.7, 0.8, 0.8), (0.6, 0.6, 0.7, 0.7)) == 0.0  # nothing twice over
    assert t2i_r1_code._mistaken_iou((0.0, 0.7, 0.8, 0.8), (0.0, 0.7, 0.8, 0.8)) == 0.0
    assert t2i_r1_code._mistaken_iou((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)) == 0.0


def test_the_code_suppresses_what_overlaps_by_more_than_half() -> None:
    whole = Detection("dog", 0.8, (-0.125, -0.125, 0.625, 0.625))  # read as (0.25, 0.25, 0.75, 0.75)
    half = Detection("dog", 0.9, (-0.125, 0.0, 0.625, 0.5))  # read as (0.25, 0.25, 0.75, 0.5)
    more = Detection("dog", 0.7, (-0.125, -0.0625, 0.625, 0.5625))  # read as (0.25, 0.25, 0.75, 0.625)
    assert t2i_r1_code._suppressed([whole, half]) == [half, whole]
    assert t2i_r1_code._suppressed([more, whole]) == [whole]
    again = Detection("dog", 0.95, half.box)
    assert t2i_r1_code._suppressed([half, more, again]) == [again]


def test_the_most_confident_pair_is_looked_at() -> None:
    record = PromptRecord.model_validate({
        "prompt": "p", "task_type": "spatial", "nouns": ["dog", "cat"],
        "spatial_info": {"obj1": "dog", "obj2": "cat", "locality": "left of"},
    })  # fmt: skip
    left, middle, right = (0, 40, 20, 60), (40, 40, 60, 60), (80, 40, 100, 60)
    cat = Detection("cat", 0.5, middle)
    sure, unsure = Detection("dog", 0.9, left), Detection("dog", 0.6, right)
    for found in ([sure, unsure, cat], [unsure, cat, sure]):
        assert detections.score_prompt(record, found, (100, 100)) == pytest.approx(1.0)
        assert t2i_r1_code.score_prompt(record, found, (100, 100)) == pytest.approx(0.9)


def spatial(first: str, second: str) -> PromptRecord:
    info = {"obj1": first, "obj2": second, "locality": "left of"}
    return PromptRecord.model_validate(
        {"prompt": "p", "task_type": "spatial", "nouns": [first], "spatial_info": info}
    )


def test_a_less_confident_pair_does_not_help() -> None:
    boxes = {"dog": [(80, 40, 99, 60), (0, 40, 20, 60)], "cat": [(0, 40, 20, 60), (80, 40, 99, 60)]}
    found = [Detection(name, 0.9 - 0.2 * n, box) for name, two in boxes.items() for n, box in enumerate(two)]
    assert detections.score_prompt(spatial("dog", "cat"), found, (100, 100)) == pytest.approx(0.4)
    # Of one name it is the first two, either way round: here one stands above the other, and a third beside them.
    dogs = [(40, 0, 60, 20), (40, 80, 60, 99), (0, 0, 10, 20)]
    found = [Detection("dog", 0.9 - 0.2 * n, box) for n, box in enumerate(dogs)]
    assert detections.score_prompt(spatial("dog", "Dog"), found, (100, 100)) == pytest.approx(0.4)
    assert detections.score_prompt(spatial("dog", "Dog"), found[::2], (100, 100)) == pytest.approx(1.0)


def test_boxes_that_overlap_by_just_as_much_stay() -> None:
    whole, half, most = (
        Detection(name, score, (0, 0, width, 10))
        for name, score, width in (("dog", 0.9, 10), ("dog", 0.8, 5), ("cat", 0.7, 9))
    )
    assert detections.instances("DOG", [half, whole]) == [whole, half]
    assert detections.instances("dog", [half, whole], nms_iou=0.49) == [whole]
    assert detections.without_twins([most, whole]) == [whole, most]
    assert detections.without_twins([most, whole], twin_iou=0.89) == [whole]


def test_counts_are_averaged() -> None:
    numbers = [{"obj_name": "dog", "num": 2}, {"obj_name": "cat", "num": 1}, {"obj_name": "cow", "num": 1}]
    record = PromptRecord.model_validate(
        {"prompt": "p", "task_type": "numeracy", "nouns": ["dog", "cat", "cow"], "numeracy_info": numbers}
    )
    found = [Detection("dog", 0.9, (50, 80, 60, 90)), Detection("cat", 0.9, (70, 60, 80, 70))]
    assert detections.score_prompt(record, found, (100, 100)) == pytest.approx(1 / 3)
    rules = ScoringRules(wrong_count=0.25)
    assert detections.score_prompt(record, found, (100, 100), rules=rules) == pytest.approx(1.5 / 3)
    assert t2i_r1_code.score_prompt(record, found, (100, 100)) == pytest.approx((0.2 + 1 + 0) / 3)
    # The directions of the picture's two sides are not one another's.
    assert t2i_r1_code.score_prompt(record, found, (100, 200)) == pytest.approx((0.2 + 1 + 0) / 3)
