"""Two learner ranks as Ray actors on a real Redis: claim, train, publish, acknowledge; and a rank that is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from learner_cases import WEIGHTS, random_groups
from learner_worker import train
from ray.exceptions import RayTaskError

from learner.config import LearnerConfig, OptimizerConfig
from learner.process_group import join
from learner.rank import LearnerRank
from policy.config import PolicyConfig
from policy.janus import Policy
from transport.buffer import TrajectoryBuffer
from transport.config import BufferConfig, WeightsConfig
from transport.redis_server import start_server
from transport.rendezvous import Endpoint
from transport.weights.object_store import ObjectStoreReceiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("shared_ray")]

DEADLINE = 60.0


def config(deadline_s: float = DEADLINE) -> LearnerConfig:
    optimizer = OptimizerConfig(lr=1e-2, eps=1e-2)
    return LearnerConfig(ranks=2, zero_stage=3, zero_persistence=0, optimizer=optimizer, deadline_s=deadline_s)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = start_server(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.close()


def start(policy: PolicyConfig, url: str, run: str, learner: LearnerConfig) -> list[Any]:
    actor = ray.remote(LearnerRank).options(num_cpus=0.1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    ranks = [
        actor.remote(policy, learner, BufferConfig(url=url), WeightsConfig(bucket_mb=1), WEIGHTS, run, 2, rank, 2)
        for rank in range(2)
    ]
    endpoint = ray.get(ranks[0].address.remote(), timeout=180)
    everywhere(ranks, "setup", endpoint)
    return ranks


def everywhere(ranks: list[Any], method: str, *arguments: Any) -> list[Any]:
    return ray.get([getattr(rank, method).remote(*arguments) for rank in ranks], timeout=180)


def test_a_step_through_buffer_and_channel(
    tiny_config: PolicyConfig, tiny_policy: Policy, redis_url: str, tmp_path: Path
) -> None:
    groups = random_groups(tiny_policy, groups=3, members=3)
    buffer = TrajectoryBuffer(redis_url, "step", 16)
    for group in reversed(groups):  # they train in the order of their index, whatever the order of arrival
        assert buffer.append(group, DEADLINE)
    ranks = start(tiny_config, redis_url, "step", config())
    entries = ray.get(ranks[0].claim.remote(3, DEADLINE), timeout=180)
    assert len(entries) == 3 and buffer.stats().pending == 3
    metrics = everywhere(ranks, "train", entries)
    assert metrics[0]["loss"] == metrics[1]["loss"] and metrics[0]["tokens"] > 0
    assert ray.get(ranks[0].acknowledge.remote(entries), timeout=180) == 3 and buffer.stats().depth == 0

    published, nothing = everywhere(ranks, "publish", 1)
    assert nothing is None and published.version == 1
    received = {name: t.clone() for name, t in ObjectStoreReceiver().receive(published, DEADLINE)}
    if not torch.distributed.is_initialized():
        join(0, 1, Endpoint("127.0.0.1", 0), None, deadline_s=60)
    expected = train(tiny_config, config().model_copy(update={"zero_stage": 0}), [groups])
    assert received.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert (received[name] - tensor).abs().max() <= 1e-5, name

    assert everywhere(ranks, "load", str(tmp_path)) == [0, 0]
    everywhere(ranks, "save", str(tmp_path))
    assert everywhere(ranks, "load", str(tmp_path)) == [1, 1]
    for rank in ranks:
        ray.kill(rank)


def test_a_rank_that_is_gone_is_noticed_within_the_deadline(
    tiny_config: PolicyConfig, tiny_policy: Policy, redis_url: str
) -> None:
    buffer = TrajectoryBuffer(redis_url, "gone", 16)
    for group in random_groups(tiny_policy, groups=2, members=3):
        buffer.append(group, DEADLINE)
    ranks = start(tiny_config, redis_url, "gone", config(deadline_s=30))
    entries = ray.get(ranks[0].claim.remote(2, DEADLINE), timeout=180)
    started = time.monotonic()
    with pytest.raises(RayTaskError, match=r"learner rank 0 of 2: a training step broke off after \d\d+\.\d s"):
        ray.get(ranks[0].train.remote(entries), timeout=180)
    assert 20 < time.monotonic() - started < 170
    assert buffer.stats().pending == 2  # nothing was acknowledged
    for rank in ranks:
        ray.kill(rank)
