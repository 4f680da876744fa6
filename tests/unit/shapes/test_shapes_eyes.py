"""The detector and the judge see rendered truth without a mistake, and each has eyes of its own."""

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest

from policy.prompts import PromptRecord, load_prompts
from rewards.scoring.detections import score_prompt
from shapes import judge
from shapes.detector import detect
from shapes.prompts import DATA
from shapes.renderer import render
from shapes.vq_training import random_scene
from shapes.world import BACKGROUND, Asked, Placed, Scene, Thing, asked, place

Truth = list[tuple[PromptRecord, Scene, np.ndarray]]
GREY = np.full((48, 48, 3), BACKGROUND, dtype=np.uint8)


@pytest.fixture(scope="module")
def truth() -> Truth:
    random = Random(0)
    records = load_prompts(DATA / "dev.jsonl") + load_prompts(DATA / "test.jsonl")
    scenes = [place(asked(record), random) for record in records]
    return [(record, scene, render(scene)) for record, scene in zip(records, scenes, strict=True)]


def test_detector_finds_every_thing_where_it_is(truth: Truth) -> None:
    for record, scene, picture in truth:
        found = detect(picture)
        assert sorted(d.label for d in found) == sorted(placed.thing.name for placed in scene)
        assert score_prompt(record, found, (48, 48)) == 1.0
        for detection in found:
            x1, y1, x2, y2 = detection.box
            centre = (x1 + x2) / 2, (y1 + y2) / 2
            assert min(np.hypot(centre[0] - p.x, centre[1] - p.y) for p in scene) < 2
            assert 0.7 < detection.score <= 1


def test_judge_calls_truth_right_and_other_requests_wrong(truth: Truth) -> None:
    for (record, _, picture), (other, _, _) in pairwise(truth):
        assert judge.is_right(record, picture)
        if sorted(asked(other).things) != sorted(asked(record).things):
            assert not judge.is_right(other, picture)


def test_judge_and_detector_agree_on_random_scenes() -> None:
    random = Random(1)
    for _ in range(100):
        scene = random_scene(random)
        names = sorted(placed.thing.name for placed in scene)
        assert sorted(d.label for d in detect(render(scene))) == names
        explained = judge.explain(render(scene))
        assert explained is not None
        assert sorted(placed.thing.name for placed in explained) == names


def test_judge_wants_the_right_direction(truth: Truth) -> None:
    for record, scene, _ in truth:
        if record.spatial_info:
            first, second = scene
            swapped = (Placed(first.thing, second.x, second.y), Placed(second.thing, first.x, first.y))
            assert not judge.is_right(record, render(swapped))


def test_an_extra_thing_is_wrong(truth: Truth) -> None:
    for record, scene, _ in truth[:40]:
        if len(scene) < 4:
            more = Asked((*asked(record).things, Thing("black", "star")))
            assert not judge.is_right(record, render(place(more, Random(2))))


def test_a_mess_is_no_scene() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert judge.explain(noise) is None
    assert judge.explain(GREY) == ()
    assert detect(GREY) == []


def test_half_a_thing_is_wrong(truth: Truth) -> None:
    record = next(record for record, _, _ in truth if record.family == "single")
    picture = render((Placed(asked(record).things[0], 24, 24),))
    assert judge.is_right(record, picture)
    picture[:, 24:] = BACKGROUND
    assert not judge.is_right(record, picture)


@pytest.mark.parametrize("see", [detect, judge.explain])
def test_another_size_is_refused(see: Callable[[np.ndarray], Any]) -> None:
    with pytest.raises(ValueError, match="48x48"):
        see(np.zeros((24, 24, 3), dtype=np.uint8))
