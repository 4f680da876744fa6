"""Every rule of rewards.scoring.detections on hand-made boxes."""

from typing import Any

import pytest

from policy.prompts import PromptRecord
from rewards.scoring.detections import (
    LOCALITIES,
    Box,
    Detection,
    UnknownLocality,
    instances,
    iou,
    relation,
    score_prompt,
)

SIZE = (384, 384)
LEFT: Box = (20, 150, 100, 230)
RIGHT: Box = (220, 150, 300, 230)
TOP: Box = (150, 20, 230, 100)
BOTTOM: Box = (150, 220, 230, 300)


def record(**fields: Any) -> PromptRecord:
    base = {"prompt": "p", "task_type": "object", "nouns": ["dog", "cat"]}
    return PromptRecord.model_validate(base | fields)


def spatial(locality: str, obj1: str = "dog", obj2: str = "cat", **fields: Any) -> PromptRecord:
    info = {"obj1": obj1, "obj2": obj2, "locality": locality}
    return record(task_type="spatial", spatial_info=info, **fields)


def dog(box: Box, score: float = 0.9) -> Detection:
    return Detection("dog", score, box)


def cat(box: Box, score: float = 0.9) -> Detection:
    return Detection("cat", score, box)


@pytest.mark.parametrize(
    ("found", "expected"),
    [([], 0.0), ([dog(LEFT)], 0.5), ([dog(LEFT), dog(RIGHT)], 0.5), ([dog(LEFT), cat(TOP)], 1.0)],
)
def test_existence_is_the_share_of_nouns(found: list[Detection], expected: float) -> None:
    assert score_prompt(record(), found, SIZE) == expected


def test_labels_match_whole_whatever_the_number_of_words() -> None:
    phrase = record(nouns=["old wooden chair", "chair"])
    assert score_prompt(phrase, [Detection("Old  wooden CHAIR", 0.9, LEFT)], SIZE) == 0.5
    assert score_prompt(phrase, [Detection("chair", 0.9, LEFT)], SIZE) == 0.5


def test_the_box_threshold_is_exclusive() -> None:
    assert score_prompt(record(nouns=["dog"]), [dog(LEFT, 0.3)], SIZE) == 0.0
    assert score_prompt(record(nouns=["dog"]), [dog(LEFT, 0.3)], SIZE, box_threshold=0.2) == 1.0


@pytest.mark.parametrize("locality", [name for name, kind in LOCALITIES.items() if kind != "near"])
def test_each_direction_scores_right_and_wrong(locality: str) -> None:
    boxes = {"left": (LEFT, RIGHT), "right": (RIGHT, LEFT), "above": (TOP, BOTTOM), "below": (BOTTOM, TOP)}
    first, second = boxes[LOCALITIES[locality]]
    assert score_prompt(spatial(locality), [dog(first), cat(second)], SIZE) == pytest.approx(1.0)
    assert score_prompt(spatial(locality), [dog(second), cat(first)], SIZE) == pytest.approx(0.4)
    assert score_prompt(spatial(locality), [dog(first)], SIZE) == pytest.approx(0.2)
    assert score_prompt(spatial(locality), [], SIZE) == 0.0


def test_the_other_axis_must_not_dominate() -> None:
    assert relation("left of", (0, 0, 20, 20), (60, 100, 80, 120), SIZE) == 0.0
    assert relation("above", (0, 0, 20, 20), (60, 100, 80, 120), SIZE) == 1.0


def test_too_close_in_the_right_direction_scores_the_iou() -> None:
    first, second = (0.0, 0.0, 100.0, 100.0), (40.0, 0.0, 140.0, 100.0)
    assert relation("left of", first, second, SIZE) == pytest.approx(60 / 140)
    assert relation("right of", first, second, SIZE) == 0.0
    assert relation("left of", first, (60.0, 0.0, 160.0, 100.0), SIZE) == 1.0


@pytest.mark.parametrize("locality", [name for name, kind in LOCALITIES.items() if kind == "near"])
def test_nearness_is_a_distance_in_the_picture(locality: str) -> None:
    near, far = (150.0, 0.0, 170.0, 20.0), (300.0, 300.0, 320.0, 320.0)
    assert relation(locality, (0, 0, 20, 20), near, SIZE) == 1.0
    assert relation(locality, (0, 0, 20, 20), far, SIZE) == pytest.approx(0.5)
    assert relation(locality, (0, 0, 20, 20), far, (768, 768)) == 1.0


def test_the_most_confident_pair_is_judged() -> None:
    found = [dog(RIGHT, 0.5), dog(LEFT, 0.8), cat((150, 150, 200, 230))]
    assert score_prompt(spatial("left of"), found, SIZE) == pytest.approx(1.0)


def test_relation_of_a_complex_prompt_counts() -> None:
    complex_prompt = spatial("on top of").model_copy(update={"task_type": "complex"})
    assert score_prompt(complex_prompt, [dog(BOTTOM), cat(TOP)], SIZE) == pytest.approx(0.4)


def test_two_objects_of_one_name_need_two_boxes() -> None:
    same = spatial("next to", "dog", "dog", nouns=["dog"])
    assert score_prompt(same, [dog(LEFT)], SIZE) == pytest.approx(0.4)
    assert score_prompt(same, [dog(LEFT), dog((110, 150, 190, 230), 0.5)], SIZE) == pytest.approx(1.0)
    above = spatial("above", "dog", "dog", nouns=["dog"])
    assert score_prompt(above, [dog(BOTTOM), dog(TOP, 0.5)], SIZE) == pytest.approx(1.0)


def test_existence_averages_all_nouns_of_a_spatial_prompt() -> None:
    three = spatial("left of", nouns=["dog", "cat", "tree", "car"])
    assert score_prompt(three, [dog(LEFT), cat(RIGHT)], SIZE) == pytest.approx(0.6 + 0.4 * 0.5)


def test_counts_are_exact_or_nothing() -> None:
    counts = record(
        task_type="numeracy", numeracy_info=[{"obj_name": "dog", "num": 2}, {"obj_name": "cat", "num": 1}]
    )
    assert score_prompt(counts, [dog(LEFT), dog(RIGHT), cat(TOP)], SIZE) == 1.0
    assert score_prompt(counts, [dog(LEFT), dog(RIGHT), cat(TOP), cat(BOTTOM)], SIZE) == 0.5
    assert score_prompt(counts, [dog(LEFT)], SIZE) == 0.0


def test_suppression_works_on_corners() -> None:
    # Read as (centre, size), these two boxes of one object would hardly overlap.
    twins = [dog((300, 300, 340, 340), 0.9), dog((302, 302, 342, 342), 0.8)]
    assert len(instances("dog", twins)) == 1
    assert instances("dog", twins)[0].score == 0.9
    assert len(instances("dog", [*twins, dog((320, 320, 360, 360), 0.7)])) == 2


def test_iou() -> None:
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0.0


def test_bad_input_is_named() -> None:
    with pytest.raises(UnknownLocality, match=r"'inside'.*left of"):
        score_prompt(spatial("inside"), [dog(LEFT), cat(RIGHT)], SIZE)
    with pytest.raises(ValueError, match="dog"):
        dog((100, 0, 50, 20))
