"""Every row of the departures table that concerns detections, under both rules."""

from __future__ import annotations

from typing import Any

import pytest

from policy.prompts import PromptRecord
from rewards.scoring import detections, t2i_r1_code
from rewards.scoring.detections import Box, Detection, without_twins

SIZE = (400, 400)
LEFT: Box = (20, 160, 100, 240)
RIGHT: Box = (300, 160, 380, 240)
TOP: Box = (160, 20, 240, 100)
BOTTOM: Box = (160, 300, 240, 380)


def dog(box: Box, score: float = 0.9) -> Detection:
    return Detection("dog", score, box)


def cat(box: Box, score: float = 0.9) -> Detection:
    return Detection("cat", score, box)


def record(**fields: Any) -> PromptRecord:
    base = {"prompt": "p", "task_type": "object", "nouns": ["dog", "cat"]}
    return PromptRecord.model_validate(base | fields)


def spatial(locality: str, **fields: Any) -> PromptRecord:
    info = {"obj1": "dog", "obj2": "cat", "locality": locality}
    return record(**{"task_type": "spatial", "spatial_info": info} | fields)


def count(number: int, noun: str = "dog") -> PromptRecord:
    return record(task_type="numeracy", nouns=[noun], numeracy_info=[{"obj_name": noun, "num": number}])


def both(record: PromptRecord, found: list[Detection], size: tuple[int, int] = SIZE) -> tuple[float, float]:
    """The paper's score and the code's."""
    return detections.score_prompt(record, found, size), t2i_r1_code.score_prompt(record, found, size)


@pytest.mark.parametrize("locality", ["above", "on top of"])
def test_localities_without_a_branch(locality: str) -> None:
    assert both(spatial(locality), [dog(TOP), cat(BOTTOM)]) == pytest.approx((1.0, 0.4))


@pytest.mark.parametrize(
    ("locality", "first", "second"),
    [
        ("on the top of", TOP, BOTTOM),
        ("below", BOTTOM, TOP),
        ("on the bottom of", BOTTOM, TOP),
        ("left of", LEFT, RIGHT),
        ("on the left of", LEFT, RIGHT),
        ("right of", RIGHT, LEFT),
        ("on the right of", RIGHT, LEFT),
    ],
)
def test_the_top_of_the_scale(locality: str, first: Box, second: Box) -> None:
    assert both(spatial(locality), [dog(first), cat(second)]) == pytest.approx((1.0, 0.9))
    assert both(spatial(locality), [dog(second), cat(first)]) == pytest.approx((0.4, 0.4))
    assert both(spatial(locality), [dog(first)]) == pytest.approx((0.2, 0.2))
    assert both(spatial(locality), []) == (0.0, 0.0)


@pytest.mark.parametrize("locality", ["next to", "near", "on side of"])
def test_nearness_holds_at_any_distance(locality: str) -> None:
    far = [dog((0, 0, 20, 20)), cat((380, 380, 400, 400))]
    paper, code = both(spatial(locality), far)
    assert paper == pytest.approx(0.6 * (150 / 384 * 400 / 380) + 0.4)
    assert code == pytest.approx(0.9)


def test_overlap_in_the_right_direction() -> None:
    found = [dog((0, 0, 100, 100)), cat((40, 0, 140, 100))]
    overlap = 60 / 140
    assert both(spatial("left of"), found) == pytest.approx((0.6 * overlap + 0.4, 0.4 + 0.1 / overlap / 2))
    slight = [dog((0, 0, 100, 100)), cat((90, 0, 190, 100))]
    assert both(spatial("left of"), slight) == pytest.approx((1.0, 0.9))


def test_a_wrong_count() -> None:
    assert both(count(3), [dog(LEFT), dog(RIGHT)]) == pytest.approx((0.0, 0.2))
    assert both(count(2), [dog(LEFT), dog(RIGHT)]) == pytest.approx((1.0, 1.0))
    assert both(count(2), []) == (0.0, 0.0)


def test_suppression_reads_centres_as_corners() -> None:
    # One thing found twice: read as (centre, size), boxes that are farther from the origin than wide do not overlap.
    twins = [dog((300, 300, 340, 340), 0.9), dog((302, 302, 342, 342), 0.8)]
    assert both(count(1), twins) == pytest.approx((1.0, 0.2))
    near_the_origin = [dog((0, 0, 360, 40), 0.9), dog((0, 8, 360, 48), 0.8)]
    assert both(count(1), near_the_origin) == (1.0, 1.0)


def test_long_nouns_never_match() -> None:
    cone = Detection("ice cream cone", 0.9, LEFT)
    assert both(record(nouns=["ice cream cone"]), [cone]) == (1.0, 0.0)
    assert both(count(1, "ice cream cone"), [cone]) == (1.0, 0.0)
    assert both(record(nouns=["teddy bear"]), [Detection("teddy bear", 0.9, LEFT)]) == (1.0, 1.0)


def test_relations_of_complex_prompts_count_in_the_paper_only() -> None:
    prompt = spatial("left of", task_type="complex")
    assert both(prompt, [dog(RIGHT), cat(LEFT)]) == pytest.approx((0.4, 1.0))


def test_two_objects_of_one_name() -> None:
    info = {"obj1": "dog", "obj2": "dog", "locality": "next to"}
    same = record(task_type="spatial", nouns=["dog"], spatial_info=info)
    assert both(same, [dog(LEFT), dog(TOP)]) == pytest.approx((1.0, 0.0))


def test_directions_are_relative_to_the_picture() -> None:
    wide = (800, 400)
    found = [dog((0, 0, 20, 20)), cat((160, 100, 180, 120))]  # 160 x 100 pixels away, but 0.2 x 0.25 of the picture
    assert both(spatial("left of"), found, wide) == pytest.approx((1.0, 0.4))


def test_the_threshold_is_exclusive() -> None:
    assert both(record(nouns=["dog"]), [dog(LEFT, 0.3)]) == (0.0, 0.0)


def test_twins_are_left_one_name() -> None:
    hair = [dog((0, 0, 100, 100), 0.8), cat((1, 0, 101, 100), 0.9)]
    assert without_twins(hair) == [hair[1]]
    counted = [dog((0, 0, 100, 100), 0.8), dog((1, 0, 101, 100), 0.9), cat(LEFT)]
    assert len(without_twins(counted)) == 3  # of one name: a matter of counting
