"""Pools on a real Ray: dispatch, deadlines, and a new process for a dead one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray

from cluster.pools.pool import Pool, PoolSpec, Replica
from recipe.errors import StageError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


async def started(logs: Path, replicas: int = 1, restarts: int = 2, deadline_s: float = 60) -> tuple[Pool, list[str]]:
    greeted: list[str] = []

    async def on_start(replica: Replica) -> None:
        await pool.tell(replica, "add", 0, work="start")
        greeted.append(replica.name)

    spec = PoolSpec("echo", "pool_target:Target", {"base": 40}, replicas, 0.1, 0, 1, deadline_s)
    pool = Pool(spec, logs, restarts, on_start)
    await pool.start(120)
    return pool, greeted


def test_calls_spread_over_replicas_and_errors_name_the_stage(tmp_path: Path) -> None:
    async def main() -> None:
        pool, greeted = await started(tmp_path, replicas=2)
        answers = await asyncio.gather(*(pool.call("add", 2, work="sum") for _ in range(8)))
        assert {value for value, _ in answers} == {42} and len({pid for _, pid in answers}) == 2
        assert sorted(greeted) == ["echo-0", "echo-1"]
        assert len(await pool.everywhere("add", 1, work="sum")) == 2
        with pytest.raises(StageError, match=r"echo: sum failed .* raised ValueError: no such thing"):
            await pool.call("fail", work="sum")
        assert pool.restarts == 0
        pool.close()

    asyncio.run(main())


def test_a_pool_reserves_custom_resources(tmp_path: Path) -> None:
    async def main() -> None:
        spec = PoolSpec("echo", "pool_target:Target", {"base": 0}, 2, 0.1, 0, 1, 60, resources={"shelf": 0.25})
        pool = Pool(spec, tmp_path, restarts=0)
        await pool.start(120)
        assert ray.available_resources()["shelf"] == 0.5
        pool.close()

    asyncio.run(main())


def test_a_dead_replica_is_replaced_and_its_call_repeated(tmp_path: Path) -> None:
    async def main() -> None:
        pool, greeted = await started(tmp_path)
        assert await pool.call("die", str(tmp_path / "mark"), work="work") == "alive"
        assert pool.restarts == 1 and greeted == ["echo-0", "echo-0"]
        assert "last words" in (tmp_path / "echo-0.log").read_text()
        pool.close()

    asyncio.run(main())


def test_a_stuck_replica_is_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        pool, _ = await started(tmp_path, deadline_s=15)
        assert await pool.call("sleep_once", str(tmp_path / "mark"), 600.0, work="work") == "awake"
        assert pool.restarts == 1
        pool.close()

    asyncio.run(main())


def test_restarts_are_bounded_and_tell_the_last_words(tmp_path: Path) -> None:
    async def main() -> None:
        pool, _ = await started(tmp_path, restarts=0)
        with pytest.raises(StageError, match=r"0 restarts are used up.*echo-0 died") as caught:
            await pool.call("die", str(tmp_path / "mark"), work="work")
        assert "last words" in caught.value.log_tail
        pool.close()

    asyncio.run(main())
