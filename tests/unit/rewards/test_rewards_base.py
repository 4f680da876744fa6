"""Configuration, import paths, scores, the HTTP body, and the ensemble with rewards in this process."""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from reward_request import encode_request
from safetensors.numpy import save

from policy.prompts import PromptRecord
from rewards.base import (
    InvalidScores,
    Reward,
    RewardConfigError,
    RewardFailure,
    check_reward,
    checked_scores,
    load_reward,
)
from rewards.config import RewardConfig, RewardsConfig
from rewards.ensemble import EnsembleFailure, score_group
from rewards.http_body import BodyError, decode_request

HERE = __name__


class Brightness(Reward):
    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        if options.get("gain", 1.0) <= 0:
            raise ValueError("gain must be above 0")

    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        return [self.gain * float(picture.mean()) for picture in pictures]


class Ruled(Brightness):
    def __init__(self, scoring: str = "paper") -> None:
        self.scoring = scoring


class Abstract(Reward):
    pass


class InProcess:
    """A client of a reward in this process; it answers when all of `together` have been asked."""

    def __init__(self, name: str, result: Any, weight: float = 1.0, together: asyncio.Barrier | None = None) -> None:
        self.name, self.weight, self.result, self.together = name, weight, result, together

    async def score(self, pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]) -> list[float | None]:
        if self.together:
            async with asyncio.timeout(30):
                await self.together.wait()
            await asyncio.sleep(0.05)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def config(**fields: Any) -> RewardConfig:
    return RewardConfig.model_validate({"name": "bright", "target": f"{HERE}:Brightness"} | fields)


def picture(value: int = 0, size: int = 4) -> np.ndarray:
    return np.full((size, size, 3), value, dtype=np.uint8)


def test_a_reward_is_found_by_its_import_path(records: list[PromptRecord]) -> None:
    reward = load_reward(config(options={"gain": 2.0}))
    assert reward.score([picture(3), picture(5)], records[:2]) == [6.0, 10.0]
    assert check_reward(config()) is Brightness


def test_scoring_reaches_the_rewards_that_take_it() -> None:
    ruled = config(target=f"{HERE}:Ruled")
    assert vars(load_reward(ruled))["scoring"] == "paper"
    assert vars(load_reward(ruled, "t2i_r1_code"))["scoring"] == "t2i_r1_code"
    own = config(target=f"{HERE}:Ruled", options={"scoring": "paper"})
    assert vars(load_reward(own, "t2i_r1_code"))["scoring"] == "paper"
    assert vars(load_reward(config(), "t2i_r1_code")) == {"gain": 1.0}
    with pytest.raises(ValidationError):
        RewardsConfig.model_validate({"services": [config()], "scoring": "ours"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "no.such.module:Thing"}, r"'bright'.*cannot import module 'no.such.module'"),
        ({"target": f"{HERE}:Missing"}, r"'bright'.*has no class 'Missing'"),
        ({"target": "policy.prompts:PromptRecord"}, r"is not a rewards.base.Reward"),
        ({"target": f"{HERE}:Abstract"}, r"is not a rewards.base.Reward with a score method"),
        ({"options": {"gian": 2.0}}, r"'bright': options: .*Brightness.*'gian'"),
        ({"options": {"gain": -1.0}}, r"'bright': options: .*gain must be above 0"),
    ],
)
def test_a_reward_that_cannot_be_made_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardConfigError, match=message):
        check_reward(config(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"weight": -1},
        {"weight": float("nan")},
        {"target": "no_colon"},
        {"name": "Bad Name"},
        {"deadline_s": 0},
        {"replicas": 0},
        {"wieght": 1},
    ],
)
def test_bad_reward_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**fields)


def test_names_are_unique_and_one_weight_counts() -> None:
    with pytest.raises(ValidationError, match="'bright'"):
        RewardsConfig(services=(config(), config()))
    with pytest.raises(ValidationError, match="weight 0"):
        RewardsConfig(services=(config(weight=0),))
    with pytest.raises(ValidationError):
        RewardsConfig(services=())
    assert RewardsConfig(services=(config(), config(name="b", weight=0))).weights == {"bright": 1.0, "b": 0.0}


def test_scores_are_finite_floats_or_missing() -> None:
    assert checked_scores([1, None, np.float32(0.5)], 3) == [1.0, None, 0.5]
    for scores in ([1.0], [1.0, float("nan")], [1.0, float("inf")], [1.0, "high"]):
        with pytest.raises(InvalidScores):
            checked_scores(scores, 2)


def test_every_reward_is_asked_at_once(records: list[PromptRecord]) -> None:
    together = asyncio.Barrier(2)
    clients = [InProcess("a", [1.0, None], together=together), InProcess("b", [0.0, 3.0], together=together)]
    scores = asyncio.run(score_group(clients, [picture()] * 2, records[:2]))
    assert scores.rewards == [{"a": 1.0, "b": 0.0}, {"a": None, "b": 3.0}]
    assert scores.failures == {}
    assert scores.seconds["a"] >= 0.05


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (RewardFailure("bad", "gone", 1.0), "gone"),
        (ZeroDivisionError("x"), "ZeroDivisionError: x"),
        ([1.0], "returned 1 scores for 2 pictures"),
        ([1.0, float("nan")], "score 1 is nan"),
    ],
)
def test_a_failed_reward_is_missing_for_the_whole_group(
    result: Any, why: str, records: list[PromptRecord], caplog: pytest.LogCaptureFixture
) -> None:
    clients = [InProcess("good", [1.0, 2.0]), InProcess("bad", result)]
    with caplog.at_level(logging.WARNING):
        scores = asyncio.run(score_group(clients, [picture()] * 2, records[:2]))
    assert scores.rewards == [{"good": 1.0, "bad": None}, {"good": 2.0, "bad": None}]
    assert scores.failures == {"bad": why}
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1
    assert "'bad' is missing for a group of 2" in caplog.text


def test_a_group_fails_when_all_that_counts_failed(records: list[PromptRecord]) -> None:
    failed = [InProcess("a", RewardFailure("a", "gone", 1.0)), InProcess("b", [float("inf")])]
    reported = InProcess("c", [1.0], weight=0.0)
    with pytest.raises(EnsembleFailure, match="a: gone; b: score 0 is inf") as caught:
        asyncio.run(score_group([*failed, reported], [picture()], records[:1]))
    assert caught.value.failures == {"a": "gone", "b": "score 0 is inf"}
    with pytest.raises(ValueError, match="1 pictures but 2"):
        asyncio.run(score_group([reported], [picture()], records[:2]))


def test_the_body_comes_back_as_it_went(records: list[PromptRecord]) -> None:
    sent = [np.random.default_rng(0).integers(0, 255, (size, 7, 3), dtype=np.uint8) for size in (5, 48, 1)]
    pictures, prompts = decode_request(encode_request(sent, records))
    assert prompts == records
    assert all(np.array_equal(a, b) for a, b in zip(sent, pictures, strict=True))


def test_a_malformed_body_is_refused(records: list[PromptRecord]) -> None:
    good = {"format": "bicot.reward/1", "prompts": [records[0].model_dump(mode="json")]}
    tensor = {"picture.0": picture()}

    def body(tensors: dict[str, np.ndarray], header: Any) -> bytes:
        return save(tensors, metadata={"bicot": json.dumps(header)})

    for bad, message in [
        (b"", "not a safetensors file"),
        (save(tensor), "no bicot request"),
        (body(tensor, []), "no bicot request"),
        (body(tensor, good | {"format": "other/1"}), "format 'other/1'"),
        (body(tensor, good | {"prompts": [{"prompt": "x"}]}), "not a prompt record"),
        (body(tensor, good | {"prompts": []}), "1 pictures but 0"),
        (body({"other": picture()}, good), "none named picture.0"),
        (body({"picture.0": np.zeros((4, 4, 3), np.float32)}, good), "float32"),
        (body({"picture.0": np.zeros((4, 4), np.uint8)}, good), "not uint8"),
    ]:
        with pytest.raises(BodyError, match=message):
            decode_request(bad)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(body: bytes) -> None:
    with pytest.raises(BodyError):
        decode_request(body)
