"""`ray job submit` onto a running cluster with token authentication, as the README says it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

RAY = str(Path(sys.executable).parent / "ray")
SMALL = [
    "steps=1", "rollout.group_size=2", "rollout.groups_per_step=2", "held_out=null", "rollout.staleness=0",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray head with token authentication; yields the environment of its users."""
    ports = {name: free_port() for name in ("gcs", "dashboard", "client", "agent")}
    home = Path(tempfile.mkdtemp(prefix="ray-job-", dir="/tmp"))  # short: sockets lie in it
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(
        [
            RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={ports['gcs']}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={ports['dashboard']}", "--num-cpus=2",
            f"--ray-client-server-port={ports['client']}", f"--dashboard-agent-listen-port={ports['agent']}",
            f"--temp-dir={home}", "--object-store-memory=200000000",
        ],
        env=environment, stdout=(home / "head.out").open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard']}"}
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(home, ignore_errors=True)


def submit(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    arguments = [RAY, "job", "submit", "--working-dir", ".", "--", *command]
    end = time.monotonic() + 240
    while True:  # the head and its job agent take a while to answer
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        text = done.stderr + done.stdout
        if time.monotonic() > end or not ("Failed to connect" in text or "No available agent" in text):
            return done
        time.sleep(2)


def test_the_same_run_as_a_job(cluster: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train = ["python", "-m", "cluster", "train", "deploy/runs/shapes.yaml", f"folder={folder}", *SMALL]
    done = submit(cluster, *train)
    assert done.returncode == 0, done.stdout[-2500:]
    assert "succeeded" in done.stdout and "step    1/1" in done.stdout
    assert f"Report: {folder / 'report.html'}" in done.stdout  # who reads the log knows no working directory
    assert json.loads((folder / "summary.json").read_text())["steps"] == 1

    failed = submit(cluster, *train, "policy.checkpoint=nowhere", f"folder={tmp_path / 'other'}")
    assert failed.returncode != 0 and "nowhere is not a folder" in failed.stdout

    outsider = {key: value for key, value in cluster.items() if key != "RAY_AUTH_TOKEN"}
    refused = submit({**outsider, "RAY_AUTH_TOKEN": "wrong" * 8}, "true")
    assert refused.returncode != 0 and "succeeded" not in refused.stdout
