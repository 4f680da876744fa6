"""Reward services on a real local Ray with Ray Serve; one start of them for the module, which is slow."""

import asyncio
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reward_request import encode_request

from policy.prompts import PromptRecord
from rewards.base import Reward, RewardFailure
from rewards.client import ServiceClient
from rewards.config import RewardConfig, RewardsConfig
from rewards.ensemble import EnsembleFailure, GroupScores, score_group
from rewards.service import RewardServiceError, RewardServices

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TARGET = f"{__name__}:Scripted"


class Scripted(Reward):
    """Does what the prompt's text says: its first word is the deed."""

    def __init__(self, scoring: str = "") -> None:
        self.failed: set[str] = set()
        self.scoring = scoring

    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        return [self.one(p, r.prompt, len(pictures)) for p, r in zip(pictures, prompts, strict=True)]

    def one(self, picture: np.ndarray, text: str, batch: int) -> float | None:
        deed, _, rest = text.partition(" ")
        if deed == "raise":
            raise ValueError("this one never works")
        if deed == "flaky" and rest not in self.failed:
            self.failed.add(rest)
            raise OSError("works the second time")
        if deed == "sleep":
            time.sleep(float(rest))
        results = {"batch": float(batch), "pid": float(os.getpid()), "nan": float("nan"), "missing": None}
        results["threads"] = float(os.environ["OMP_NUM_THREADS"])
        results["scoring"] = float(self.scoring == "t2i_r1_code")
        return results.get(deed, float(picture.mean()))


class Unloadable(Scripted):
    def __init__(self) -> None:
        raise RuntimeError("the checkpoint is torn")


def service(name: str, **fields: Any) -> RewardConfig:
    return RewardConfig.model_validate({"name": name, "target": TARGET, "cpus": 0} | fields)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def config() -> RewardsConfig:
    services = (
        service("single", batch_size=16, batch_wait_s=1.0, threads=2),
        service("twins", replicas=2, batch_size=4, batch_wait_s=0.0, deadline_s=60, weight=0.5),
        service("hasty", deadline_s=1.0, batch_wait_s=0.0),
    )
    return RewardsConfig(
        services=services, scoring="t2i_r1_code", start_deadline_s=240, http=True, http_port=free_port()
    )


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def services(shared_ray: None, config: RewardsConfig, logs: Path) -> Iterator[RewardServices]:
    started = RewardServices.start(config, run="test", logs_dir=logs)
    yield started
    started.close(stop_serve=True)


@pytest.fixture
def single(services: RewardServices) -> ServiceClient:
    return services.clients[0]


@pytest.fixture
def twins(services: RewardServices) -> ServiceClient:
    return services.clients[1]


@pytest.fixture
def hasty(services: RewardServices) -> ServiceClient:
    return services.clients[2]


def pictures(count: int, value: int = 7) -> list[np.ndarray]:
    return [np.full((48, 48, 3), value, dtype=np.uint8)] * count


def prompts(text: str, count: int) -> list[PromptRecord]:
    return [PromptRecord(prompt=text, task_type="object", nouns=("thing",))] * count


def ask(client: ServiceClient, text: str, count: int = 2) -> Awaitable[list[float | None]]:
    return client.score(pictures(count), prompts(text, count))


def group(clients: list[ServiceClient], text: str) -> GroupScores:
    return asyncio.run(score_group(clients, pictures(2), prompts(text, 2)))


def run(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Results or exceptions of calls made at the same time."""

    async def together() -> list[Any]:
        return await asyncio.gather(*(call() for call in calls), return_exceptions=True)

    return asyncio.run(together())


def test_scores_come_back_in_order(single: ServiceClient) -> None:
    mixed = [pictures(1, value)[0] for value in (1, 2, 3)]
    records = prompts("mean", 2) + prompts("missing", 1)
    assert asyncio.run(single.score(mixed, records)) == [1.0, 2.0, None]


def test_groups_share_batches_and_a_batch_is_never_too_large(single: ServiceClient) -> None:
    (before,) = asyncio.run(single.stats())
    answers = run(*[lambda: ask(single, "batch", 8)] * 4, lambda: ask(single, "batch", 40))
    (after,) = asyncio.run(single.stats())
    assert all(score == 16.0 for answer in answers[:4] for score in answer)
    assert (after.calls - before.calls, after.pictures - before.pictures) == (5, 72)
    assert after.batches - before.batches == 5  # 72 pictures in batches of 16


def test_a_bad_group_does_not_fail_its_batch_mates(single: ServiceClient) -> None:
    good, bad = run(lambda: ask(single, "batch", 3), lambda: ask(single, "raise", 3))
    assert good == [3.0, 3.0, 3.0]
    assert isinstance(bad, RewardFailure)
    assert bad.why == "ValueError: this one never works"


def test_a_failure_is_in_the_replica_s_log(single: ServiceClient, logs: Path) -> None:
    run(lambda: ask(single, "raise"))
    texts = [log.read_text() for log in logs.glob("replica_test-single_*.log")]
    assert any("ValueError: this one never works\n" in text for text in texts)


def test_a_failed_attempt_is_repeated(single: ServiceClient) -> None:
    assert run(lambda: ask(single, "flaky once"))[0] == [7.0, 7.0]


def test_nan_is_missing_and_not_asked_again(single: ServiceClient, twins: ServiceClient) -> None:
    (before,) = asyncio.run(single.stats())
    with pytest.raises(EnsembleFailure, match=r"single: score 0 is nan; twins: score 0 is nan"):
        group([single, twins], "nan")
    (after,) = asyncio.run(single.stats())
    assert after.calls - before.calls == 1


def test_a_reward_that_sleeps_is_missing_and_the_others_count(services: RewardServices) -> None:
    scores = group(list(services.clients), "sleep 4")  # a picture; hasty has one second
    assert scores.rewards == [{"single": 7.0, "twins": 7.0, "hasty": None}] * 2
    assert scores.failures == {"hasty": "no scores within its deadline of 1 s"}
    assert 1.0 <= scores.seconds["hasty"] < 8.0


def test_a_stuck_replica_is_replaced(hasty: ServiceClient) -> None:
    assert isinstance(run(lambda: ask(hasty, "sleep 3600"))[0], RewardFailure)
    end = time.monotonic() + 120
    while isinstance(run(lambda: ask(hasty, "mean"))[0], RewardFailure):
        assert time.monotonic() < end, "the stuck replica was not replaced"


def test_replicas_share_the_work_and_have_their_settings(single: ServiceClient, twins: ServiceClient) -> None:
    end, pids = time.monotonic() + 120, set[float | None]()
    while len(pids) < 2:  # a busy machine may give a few calls in a row to one of them
        assert time.monotonic() < end, "one replica does all the work"
        pids |= {score for answer in run(*[lambda: ask(twins, "pid", 4)] * 12) for score in answer}
    assert len(pids) == 2
    assert len(asyncio.run(twins.stats())) == 2
    assert run(lambda: ask(single, "threads"))[0] == [2.0, 2.0]
    assert run(lambda: ask(single, "scoring"))[0] == [1.0, 1.0]


def test_a_killed_replica_comes_back_and_its_calls_are_repeated(single: ServiceClient) -> None:
    async def kill_at_work() -> tuple[float | None, list[list[float | None]]]:
        victim = (await ask(single, "pid"))[0]
        calls = [asyncio.create_task(single.score(pictures(2), prompts("sleep 0.5", 2))) for _ in range(3)]
        await asyncio.sleep(0.3)
        os.kill(int(victim or 0), signal.SIGKILL)
        return victim, await asyncio.gather(*calls)

    victim, answers = asyncio.run(kill_at_work())
    assert answers == [[7.0, 7.0]] * 3
    assert run(lambda: ask(single, "pid"))[0] != [victim, victim]


def post(config: RewardsConfig, body: bytes) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{config.http_port}/rewards/test/single"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_http_gives_the_same_scores(config: RewardsConfig, services: RewardServices) -> None:
    records = [*prompts("mean", 1), *prompts("missing", 1)]
    assert post(config, encode_request(pictures(2), records)) == (200, {"scores": [7.0, None]})
    assert post(config, encode_request(pictures(1), prompts("raise", 1)))[0] == 500
    status, answer = post(config, b"not a body")
    assert (status, "not a safetensors file" in answer["error"]) == (400, True)


def test_a_reward_that_does_not_load_is_named(services: RewardServices) -> None:
    bad = RewardsConfig(services=(service("torn", target=f"{__name__}:Unloadable"),), start_deadline_s=60)
    with pytest.raises(RewardServiceError, match=r"'torn' did not start: .*the checkpoint is torn"):
        RewardServices.start(bad, run="bad")


def test_a_reward_that_finds_no_room_is_named(services: RewardServices) -> None:
    large = RewardsConfig(services=(service("large", cpus=999),), start_deadline_s=3)
    with pytest.raises(RewardServiceError, match=r"not ready within 3 s: 'large'"):
        RewardServices.start(large, run="large")


def test_closing_a_run_leaves_the_others_alone(services: RewardServices, single: ServiceClient) -> None:
    config = RewardsConfig(services=(service("single"),))
    other = RewardServices.start(config, run="other")
    assert group(list(other.clients), "mean").rewards[0] == {"single": 7.0}
    other.close(stop_serve=True)
    failure = run(lambda: ask(other.clients[0], "mean"))[0]
    assert isinstance(failure, RewardFailure)
    assert run(lambda: ask(single, "mean"))[0] == [7.0, 7.0]
