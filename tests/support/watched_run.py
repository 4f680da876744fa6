"""A run that two modules look at: disturbed on purpose, and watched by Prometheus where there is one."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from prometheus import Prometheus, binary, free_port
from run_process import ROOT, Run

STEPS = 8


@dataclass(frozen=True, slots=True)
class Watched:
    """The run, its page at the end of step 2, and what Prometheus kept of it from `start` to `end` (Unix time)."""

    run: Run
    page: str
    targets: str
    prometheus: Prometheus | None
    start: float
    end: float


def read(url: str, word: str, deadline_s: float = 60) -> str:
    """The page, as soon as it has that word: a run asks its replicas every two seconds."""
    end = time.monotonic() + deadline_s
    while word not in (page := urllib.request.urlopen(url, timeout=30).read().decode()):
        assert time.monotonic() < end, page
        time.sleep(0.2)
    return str(page)


@pytest.fixture(scope="session")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Its image actor dies after step 2, one of its rewards sleeps, and SIGTERM ends it after step `STEPS`."""
    folder = tmp_path_factory.mktemp("disturbed")
    port = free_port()
    page = f"http://127.0.0.1:{port}"
    dev = folder / "dev.jsonl"
    dev.write_text("".join((ROOT / "shapes/data/dev.jsonl").read_text().splitlines(keepends=True)[:120:20]))
    prometheus = Prometheus(folder / "prometheus", f"{page}/targets") if binary("prometheus") else None
    start = time.time()
    run = Run(
        folder / "run", "rollout.staleness=1", "steps=60", "rewards.services.1.target=sleepy_reward:Sleepy",
        "rewards.services.1.deadline_s=1", "rewards.services.1.retries=0", f"metrics.port={port}",
        f"held_out={{metric: strict, dev: {dev}, every: 2, samples: 2}}",
    )  # fmt: skip
    try:
        run.wait_for(2)
        seen = [read(f"{page}/metrics", 'bicot_weight_version{pool="semantic"'), read(f"{page}/targets", "bicot")]
        os.kill(run.pid_of("image-0.log"), signal.SIGKILL)
        run.wait_for(max(STEPS, len(run.rows()) + 4))  # more than what was drawn before the actor died
        os.kill(run.process.pid, signal.SIGTERM)
        code = run.finish()
    except BaseException:
        run.kill()
        raise
    assert code == 130, run.text()
    yield Watched(run, *seen, prometheus, start, time.time())
    if prometheus:
        prometheus.close()
