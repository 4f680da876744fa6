"""The rewards of the shapes world on pictures made by hand."""

import numpy as np
import pytest

from policy.prompts import CountInfo, PromptRecord, SpatialInfo
from rewards.base import Reward, load_reward
from rewards.config import RewardConfig
from shapes.renderer import render
from shapes.rewards import Attributes, Detector, Strict, Tidiness
from shapes.world import BACKGROUND, Placed, Thing

GREY = np.full((48, 48, 3), BACKGROUND, dtype=np.uint8)
CIRCLE, SQUARE = Thing("red", "circle"), Thing("blue", "square")
SINGLE = PromptRecord(prompt="a red circle", task_type="object", nouns=("red circle",), attr_nouns=("red circle",))
BOTH = PromptRecord(
    prompt="a red circle and a blue square",
    task_type="color",
    nouns=("red circle", "blue square"),
    attr_nouns=("red circle", "blue square"),
)
LEFT = PromptRecord(
    prompt="a red circle on the left of a blue square",
    task_type="spatial",
    nouns=("red circle", "blue square"),
    spatial_info=SpatialInfo(obj1="red circle", obj2="blue square", locality="on the left of"),
)
TWO = PromptRecord(
    prompt="two red circles",
    task_type="numeracy",
    nouns=("red circle",),
    numeracy_info=(CountInfo(obj_name="red circle", num=2),),
)


def picture(*things: tuple[Thing, int, int]) -> np.ndarray:
    """Things at the given centres."""
    return render(tuple(Placed(thing, x, y) for thing, x, y in things))


def score(reward: Reward, picture: np.ndarray, record: PromptRecord) -> float:
    (value,) = reward.score([picture], [record])
    assert value is not None
    return value


RIGHT = picture((CIRCLE, 8, 24), (SQUARE, 40, 24))
MIRRORED = picture((CIRCLE, 40, 24), (SQUARE, 8, 24))
CIRCLE_ALONE = picture((CIRCLE, 8, 24))
TWO_CIRCLES = picture((CIRCLE, 8, 24), (CIRCLE, 32, 24))


@pytest.mark.parametrize(
    ("record", "shown", "expected"),
    [
        (BOTH, RIGHT, 1.0),
        (BOTH, CIRCLE_ALONE, 0.5),
        (BOTH, GREY, 0.0),
        (LEFT, RIGHT, 1.0),
        (LEFT, MIRRORED, 0.4),
        (LEFT, CIRCLE_ALONE, 0.2),
        (TWO, TWO_CIRCLES, 1.0),
        (TWO, CIRCLE_ALONE, 0.0),
    ],
)
def test_detector(record: PromptRecord, shown: np.ndarray, expected: float) -> None:
    assert score(Detector(), shown, record) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("record", "shown", "expected"),
    [
        (SINGLE, CIRCLE_ALONE, 1),
        (SINGLE, TWO_CIRCLES, 0),
        (BOTH, RIGHT, 1),
        (LEFT, RIGHT, 1),
        (LEFT, MIRRORED, 0),
        (LEFT, CIRCLE_ALONE, 0),
        (TWO, TWO_CIRCLES, 1),
        (TWO, CIRCLE_ALONE, 0),
        (SINGLE, GREY, 0),
    ],
)
def test_strict(record: PromptRecord, shown: np.ndarray, expected: float) -> None:
    assert score(Strict(), shown, record) == expected


def test_attributes_are_graded_and_missing_without_phrases() -> None:
    reward = Attributes()
    exact = score(reward, CIRCLE_ALONE, SINGLE)
    other_shape = score(reward, picture((Thing("red", "star"), 24, 24)), SINGLE)
    other_colour = score(reward, picture((Thing("blue", "circle"), 24, 24)), SINGLE)
    assert exact > 0.9 > other_shape > other_colour
    assert score(reward, GREY, SINGLE) == 0
    assert score(reward, CIRCLE_ALONE, BOTH) == pytest.approx(exact / 2, abs=0.05)
    assert reward.score([RIGHT, TWO_CIRCLES], [LEFT, TWO]) == [None, None]


def test_tidiness_falls_with_noise_with_clutter_and_with_bad_form() -> None:
    reward = Tidiness()
    tidy = score(reward, CIRCLE_ALONE, SINGLE)
    assert tidy > 0.9
    assert score(reward, GREY, SINGLE) == 0
    cluttered = score(reward, TWO_CIRCLES, SINGLE)
    assert cluttered == pytest.approx(tidy / 2, abs=0.05)
    dirty = CIRCLE_ALONE.copy()
    dirty[40:, 20:] = (180, 100, 128)  # a stain
    assert score(reward, dirty, SINGLE) < tidy - 0.05
    broken = CIRCLE_ALONE.copy()
    broken[20:24, :16] = BACKGROUND
    assert score(reward, broken, SINGLE) < tidy - 0.05


def test_a_score_does_not_depend_on_batch_mates() -> None:
    shown, asked_for = [RIGHT, CIRCLE_ALONE, GREY], [BOTH, SINGLE, LEFT]
    for reward in (Detector(), Attributes(), Tidiness(), Strict()):
        alone = [reward.score([one], [record])[0] for one, record in zip(shown, asked_for, strict=True)]
        assert reward.score(shown, asked_for) == alone


def test_rewards_load_by_import_path() -> None:
    for name in ("Detector", "Attributes", "Tidiness", "Strict"):
        load_reward(RewardConfig(name=name.lower(), target=f"shapes.rewards:{name}"))


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="48x48"):
        score(Detector(), np.zeros((24, 24, 3), dtype=np.uint8), SINGLE)
