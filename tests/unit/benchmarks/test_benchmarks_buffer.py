"""The buffer's benchmark: every queue hands on the same groups, and the figures come out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.buffer import CONVERSIONS, QUEUES, Bare, Bicot, make_group, run
from benchmarks.report import Report
from transport.redis_server import RedisServer, start_server
from transport.wire import pack


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with start_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.mark.parametrize("pictures", [False, True])
def test_a_group_has_the_real_size_and_survives_every_conversion(pictures: bool) -> None:
    group = make_group(pictures)
    assert len(group.members) == 8
    assert group.tokens == 8 * (576 + 60)
    assert all((member.png is not None) == pictures for member in group.members)
    for name, (dump, load) in CONVERSIONS.items():
        assert pack(load(dump(group))) == pack(group), name


@pytest.mark.parametrize("name", QUEUES)
def test_every_queue_hands_on_each_group_once_and_in_order(server: RedisServer, name: str) -> None:
    groups = [replace(make_group(seed=index), id=f"visit-0/{index}", index=index) for index in range(5)]
    queue = QUEUES[name](server.url, f"test-{name}", 8)
    for group in groups:
        queue.put(group)
    taken = [*queue.take(2), *queue.take(3)]
    if name == "limit":
        assert taken == [pack(groups[0])] * 5
    else:
        assert [pack(group) for group in taken] == [pack(group) for group in groups]
    match queue:
        case Bicot():
            assert queue.buffer.stats().depth == 0
        case Bare():
            assert queue.redis.xlen(queue.run) == 0
        case _:
            assert queue.redis.llen(queue.run) == 0
    queue.close()


def test_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, path = Report("buffer", "cpu", "tiny", 1), tmp_path / "buffer.json"
    run(report, groups=10, producers=(1, 2), claims=(1, 4))
    report.write(path)
    assert "in, groups/s; producers are threads of one process" in capsys.readouterr().out
    without, with_pictures, *rates = json.loads(path.read_text())["tables"]
    for table, at_least in ((without, 66_000), (with_pictures, 78_000)):  # 4 bytes an id and a log-prob, and the PNGs
        assert [row["case"] for row in table["rows"]] == list(CONVERSIONS)
        assert all(row["bytes"] > at_least and row["write, us"] > 0 and row["read, us"] > 0 for row in table["rows"])
    assert len(rates) == 6
    for table in rates:
        for row in table["rows"]:
            figures = [value for value in row.values() if isinstance(value, float)]
            assert len(figures) == len(QUEUES) + 3, row
            assert all(math.isfinite(figure) and figure > 0 for figure in figures), row
            assert row["x pickle"] == pytest.approx(row["bicot"] / row["pickle"])
