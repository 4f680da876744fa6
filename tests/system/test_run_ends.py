"""A run that loses what it cannot replace ends by its name, and goes on when it is resumed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from run_process import Run, descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ONE_REWARD = "rewards.services=[{name: detector, target: 'shapes.rewards:Detector', cpus: 0.1}]"


def test_a_dead_learner_and_then_a_dead_redis(tmp_path: Path) -> None:
    arguments = ["steps=200", "rollout.staleness=0", "buffer.reconnect_s=3", ONE_REWARD]
    run = Run(tmp_path / "run", *arguments)
    run.wait_for(1)
    os.kill(run.pid_of("learner-0.log"), signal.SIGKILL)
    assert run.finish() == 1, run.text()
    assert "learner-0 died" in run.text() and "Traceback" not in run.text()

    trained, before = len(run.rows()), len(run.text())
    resumed = Run(tmp_path / "run", *arguments, "--resume")
    resumed.wait_for(trained + 2)
    rows = resumed.rows()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:  # on both sides of the resume, whose weights go through the object store
        assert row["logprob_gap_max/image"] < 1e-4 and row["logprob_gap_max/semantic"] < 1e-3
    redis = next(
        pid for pid in descendants(resumed.process.pid) if "redis-server" in Path(f"/proc/{pid}/cmdline").read_text()
    )
    os.kill(redis, signal.SIGKILL)
    assert resumed.finish() == 1, resumed.text()
    told = resumed.text()[before:]
    assert "buffer" in told and "Traceback" not in told
