"""The buffer over a real redis-server: nothing lost, nothing twice, no wait without an end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from policy.prompts import PromptRecord
from transport.buffer import BufferStats, TrajectoryBuffer
from transport.errors import BufferCorrupt, BufferTimeout, BufferUnavailable
from transport.redis_server import RedisServer, start_server
from transport.trajectory import ImageSegment, Member, TrajectoryGroup

RECORD = PromptRecord(prompt="a red circle", task_type="object", nouns=("circle",))
Open = Callable[..., TrajectoryBuffer]


def group(name: str, version: int = 0) -> TrajectoryGroup:
    image = ImageSegment(
        prompt_ids=torch.tensor([1, 2]),
        token_ids=torch.tensor([3, 4, 5]),
        conditional_logprobs=torch.tensor([-1.0, -2.0, -3.0]),
        guided_logprobs=torch.tensor([-1.5, -2.5, -3.5]),
        guidance_scale=5.0,
        temperature=1.0,
        weight_version=version,
    )
    return TrajectoryGroup(name, 0, 0, RECORD, (Member(1, None, image, rewards={"hps": None}),))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def open_buffer(server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens ends of one buffer, empty at the start of the test."""
    opened: list[TrajectoryBuffer] = []

    def make(**options: Any) -> TrajectoryBuffer:
        settings: dict[str, Any] = {"url": server.url, "run": request.node.name, "capacity": 64, "reconnect_s": 1.0}
        opened.append(TrajectoryBuffer(**settings | options))
        return opened[-1]

    yield make
    for buffer in opened:
        buffer.close()


def names(claims: list[Any]) -> list[str]:
    return [claim.group.id for claim in claims]


def test_groups_come_out_in_the_order_they_went_in(open_buffer: Open) -> None:
    buffer, rank_1 = open_buffer(), open_buffer()
    for name in "abcde":
        assert buffer.append(group(name), 1)
    claims = buffer.claim(3, 1)
    assert names(claims) == ["a", "b", "c"]
    assert torch.equal(claims[0].group.members[0].image.token_ids, torch.tensor([3, 4, 5]))
    assert claims[0].group.members[0].rewards == {"hps": None}
    assert [g.id for g in rank_1.read([claims[2].entry_id, claims[0].entry_id])] == ["c", "a"]
    assert names(buffer.claim(2, 1)) == ["d", "e"]


def test_a_group_is_appended_once(open_buffer: Open) -> None:
    buffer = open_buffer()
    assert [buffer.append(group("a"), 1) for _ in range(3)] == [True, False, False]
    (claim,) = buffer.claim(1, 1)
    assert not buffer.append(group("a"), 1)
    assert buffer.acknowledge([claim.entry_id]) == 1
    assert buffer.acknowledge([claim.entry_id]) == 0
    assert not buffer.append(group("a"), 1), "a trained group must not come back"
    assert buffer.stats().depth == 0


def test_a_group_is_appended_once_by_many_at_the_same_time(open_buffer: Open) -> None:
    buffers = [open_buffer() for _ in range(4)]
    start = threading.Barrier(8)

    def work(index: int) -> int:
        start.wait(30)
        return sum(buffers[index % 4].append(group(str(name)), 5) for name in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 30
    assert sorted(names(buffers[0].claim(30, 1)), key=int) == [str(name) for name in range(30)]


def test_a_full_buffer_waits_for_room(open_buffer: Open) -> None:
    buffer, writer = open_buffer(capacity=2), open_buffer(capacity=2)
    buffer.append(group("a"), 1)
    buffer.append(group("b"), 1)
    (claim,) = buffer.claim(1, 1)
    with pytest.raises(BufferTimeout, match=r"run '.*' stayed full \(2 of 2 groups\) for 0\.\d s while group 'c'"):
        buffer.append(group("c"), 0.2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(writer.append, group("c"), 30)
        time.sleep(0.1)
        assert not waiting.done()
        buffer.acknowledge([claim.entry_id])
        assert waiting.result(30)
    assert not buffer.append(group("c"), 0.2), "a known id is answered at once, full or not"


def test_many_writers_never_exceed_the_capacity(open_buffer: Open) -> None:
    buffers = [open_buffer(capacity=5) for _ in range(4)]
    reader = open_buffer(capacity=5)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(buffers[i].append, group(f"{i}.{j}"), 20) for i in range(4) for j in range(10)]
        got: list[str] = []
        while len(got) < 40:
            (claim,) = reader.claim(1, 10)
            assert reader.stats().depth <= 5
            got.append(claim.group.id)
            reader.acknowledge([claim.entry_id])
        assert all(job.result(30) for job in jobs)
    assert len(set(got)) == 40


def test_a_claim_that_runs_out_of_time_keeps_what_it_has(open_buffer: Open) -> None:
    buffer = open_buffer()
    buffer.append(group("a"), 1)
    started = time.monotonic()
    with pytest.raises(BufferTimeout, match=r"gave 1 of the 3 groups asked for within 0\.3 s"):
        buffer.claim(3, 0.3)
    assert 0.25 < time.monotonic() - started < 20
    assert buffer.stats().pending == 1
    for name in "bc":
        buffer.append(group(name), 1)
    assert names(buffer.claim(3, 1)) == ["a", "b", "c"]


def test_a_claim_waits_for_groups_that_come_late(open_buffer: Open) -> None:
    buffer, writer = open_buffer(), open_buffer()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(buffer.claim, 2, 30)
        for name in "ab":
            time.sleep(0.1)
            writer.append(group(name), 1)
        assert names(waiting.result(30)) == ["a", "b"]


def test_a_restarted_consumer_finds_its_own_claims_first(open_buffer: Open) -> None:
    buffer = open_buffer()
    for name in "abcd":
        buffer.append(group(name), 1)
    first = buffer.claim(2, 1)
    buffer.acknowledge([first[0].entry_id])
    again = open_buffer()
    assert names(again.claim(3, 1)) == ["b", "c", "d"]
    with pytest.raises(BufferTimeout):
        again.claim(1, 0.05)


def test_stats_follow_the_groups(open_buffer: Open) -> None:
    buffer = open_buffer()
    assert buffer.stats() == BufferStats(0, 0, 0.0, 0, 0)
    for name in "abc":
        buffer.append(group(name), 1)
    time.sleep(0.05)
    (claim,) = buffer.claim(1, 1)
    stats = buffer.stats()
    assert (stats.depth, stats.pending, stats.appended) == (3, 1, 3)
    assert 0.03 < stats.oldest_age_s < 60
    buffer.acknowledge([claim.entry_id])
    assert buffer.stats().bytes == stats.bytes * 2 // 3


def test_an_entry_that_cannot_be_read_is_named_until_a_resume(open_buffer: Open, server: RedisServer) -> None:
    buffer = open_buffer(run="corrupt")
    buffer.append(group("a"), 1)
    with redis.Redis.from_url(server.url) as client:
        entry = client.xadd("bicot:{corrupt}:stream", {"id": "b", "group": b"\x80\x04pickle?"})
        client.sadd("bicot:{corrupt}:known", "b")
    for _ in range(2):
        with pytest.raises(BufferCorrupt, match=r"group 'b', cannot be read \(not a traj.*; resume the run"):
            buffer.claim(2, 1)
    with pytest.raises(BufferCorrupt, match="cannot be read"):
        buffer.read([entry.decode()])
    with pytest.raises(BufferCorrupt, match="has no entry 1-1"):
        buffer.read(["1-1"])
    assert buffer.rewind(["a"]) == 2
    assert buffer.append(group("b"), 1)
    assert names(buffer.claim(1, 1)) == ["b"]


def test_a_resume_undoes_what_the_checkpoint_does_not_know(open_buffer: Open) -> None:
    """The checkpoint has a and b trained. Then c was trained too, d and e were claimed, f was appended."""
    old = open_buffer()
    for name in "abcdef":
        old.append(group(name), 1)
    claims = {claim.group.id: claim.entry_id for claim in old.claim(5, 1)}
    old.acknowledge([claims[name] for name in "ac"])  # b's acknowledgement was lost

    new = open_buffer()
    for dropped in (4, 0):  # repeating it changes nothing
        assert new.rewind(["a", "b"]) == dropped
        assert (new.stats().depth, new.stats().pending, new.stats().bytes) == (0, 0, 0)
    assert not new.append(group("a"), 1) and not new.append(group("b"), 1)
    for name in "cdef":
        assert new.append(group(name), 1)
    claims = {claim.group.id: claim.entry_id for claim in new.claim(4, 1)}
    assert list(claims) == ["c", "d", "e", "f"]
    assert new.acknowledge(claims.values()) == 4
    assert new.stats().bytes == 0


def test_a_resume_with_an_empty_redis_knows_what_is_trained(open_buffer: Open) -> None:
    buffer = open_buffer()
    assert buffer.rewind(["a"]) == 0
    assert not buffer.append(group("a"), 1)
    assert buffer.append(group("b"), 1)


def test_a_new_run_knows_nothing_of_an_earlier_one(open_buffer: Open) -> None:
    """In a Redis of the user's, whose keys outlive a run."""
    old = open_buffer()
    old.append(group("a"), 1)
    old.acknowledge([claim.entry_id for claim in old.claim(1, 1)])
    new = open_buffer()
    new.rewind([])
    assert new.append(group("a"), 1)
    assert names(new.claim(1, 1)) == ["a"]


def test_runs_do_not_see_each_other(open_buffer: Open) -> None:
    one, other = open_buffer(run="one"), open_buffer(run="other")
    assert one.append(group("a"), 1)
    assert other.append(group("a"), 1)
    assert (one.stats().depth, other.stats().depth) == (1, 1)
    with pytest.raises(ValueError, match="only letters"):
        open_buffer(run="a:b")


def test_a_killed_redis_is_reported_within_the_deadline(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        buffer = TrajectoryBuffer(server.url, "demo", 4, reconnect_s=0.5)
        buffer.append(group("a"), 1)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(buffer.claim, 2, 30)
            time.sleep(0.2)
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(BufferUnavailable, match=r"claiming groups: Redis at unix:///.*/redis.sock did not"):
                waiting.result(30)
        for call in (
            lambda: buffer.append(group("b"), 30),
            lambda: buffer.append(group("b"), 0.1),
            buffer.stats,
            lambda: buffer.rewind([]),
            lambda: TrajectoryBuffer(server.url, "demo", 4, reconnect_s=0.1),
        ):
            started = time.monotonic()
            with pytest.raises(BufferUnavailable):
                call()
            assert time.monotonic() - started < 20


def test_a_redis_that_hangs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transport.redis_client.SOCKET_TIMEOUT_S", 0.3)
    with start_server(tmp_path) as server:
        buffer = TrajectoryBuffer(server.url, "demo", 4, reconnect_s=0.2)
        os.kill(server.pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(BufferUnavailable, match="Timeout"):
            buffer.append(group("a"), 30)
        assert time.monotonic() - started < 20
        os.kill(server.pid, signal.SIGCONT)
        assert buffer.append(group("b"), 5)
        assert not buffer.append(group("b"), 5), "the id of a group that is there is known"


def test_a_redis_that_comes_back_has_lost_nothing(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        buffer = TrajectoryBuffer(server.url, "demo", 8, reconnect_s=30)
        for name in "abcde":
            buffer.append(group(name), 1)
        first = buffer.claim(2, 1)
        buffer.acknowledge([first[0].entry_id])
        os.kill(server.pid, signal.SIGKILL)
        server.close()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(buffer.append, group("f"), 30)
            time.sleep(0.2)
            with start_server(tmp_path):
                assert waiting.result(30)
                assert not buffer.append(group("a"), 1)
                assert buffer.acknowledge([first[1].entry_id]) == 1
                assert names(buffer.claim(4, 1)) == ["c", "d", "e", "f"]
                assert (buffer.stats().depth, buffer.stats().pending) == (4, 4)
                assert names(TrajectoryBuffer(server.url, "demo", 8).claim(4, 1)) == ["c", "d", "e", "f"]


def test_a_redis_that_lost_its_data_is_reported(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        buffer = TrajectoryBuffer(server.url, "demo", 8)
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        with pytest.raises(BufferUnavailable, match="lost the run's keys; resume the run from its checkpoint"):
            buffer.claim(1, 1)


def test_a_wrong_password_and_a_wrong_url_are_reported_at_once(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        redis.Redis.from_url(server.url).config_set("requirepass", "right")
        for url in (server.url.replace("unix://", "unix://:wr0ng@"), server.url):
            with pytest.raises(BufferUnavailable, match=r"refused the password") as caught:
                TrajectoryBuffer(url, "demo", 4)
            assert "wr0ng" not in str(caught.value)
        TrajectoryBuffer(server.url.replace("unix://", "unix://:right@"), "demo", 4).close()
    with pytest.raises(BufferUnavailable, match="not a Redis URL") as caught:
        TrajectoryBuffer("redis://:se/cret@host:1", "demo", 4)
    assert "se/" not in str(caught.value)
