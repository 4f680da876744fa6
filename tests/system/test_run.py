"""Whole runs, every part real, cut down to a few steps of the shapes world."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from run_process import ROOT, Run, alive, bicot, descendants
from safetensors.torch import load_file
from watched_run import STEPS, Watched

from recipe.run_folder import read_json_lines

REPEATABLE = ["rollout.staleness=0", "rollout.groups_in_flight=1"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def final_weights(run: Run) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(run.folder.policy.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A strictly on-policy run that nobody disturbed, and that keeps its groups of two steps."""
    run = Run(tmp_path_factory.mktemp("run") / "calm", *REPEATABLE, "rollout.keep_groups=2")
    assert run.finish() == 0, run.text()
    return run


def test_one_policy_on_every_step(undisturbed: Run) -> None:
    """On-policy, the learner's log-probs equal the actors': on step 1, and after each weight sync."""
    rows = undisturbed.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["staleness/image"] == row["staleness/semantic"] == 0
        assert row["logprob_gap_max/image"] < 1e-4 and row["logprob_gap_max/semantic"] < 1e-3
        assert row["grad_norm"] > 0
    assert rows[3]["kl"] > 1e-6  # the policy did move between the syncs


def test_what_a_run_leaves_behind(undisturbed: Run) -> None:
    summary = json.loads(undisturbed.folder.summary.read_text())
    assert summary["steps"] == 4 and summary["status"] == "finished" and summary["pictures_per_s"] > 0
    assert set(summary["rewards"]) == {"detector", "attributes", "tidiness", "strict"}
    logs = {path.name for path in undisturbed.folder.logs.iterdir()}
    assert {"driver.log", "image-0.log", "semantic-0.log", "learner-0.log"} <= logs
    html = undisturbed.folder.report.read_text()
    assert "<svg" in html and "http://" not in html.split("<pre")[0] and "https://" not in html
    assert list(undisturbed.folder.tensorboard.glob("events*"))


def test_its_policy_draws(undisturbed: Run, tmp_path: Path) -> None:
    """The same prompt and seed give the same picture, alone and beside others."""

    def draw(out: str, *prompts: str) -> dict[str, bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("OMP_NUM_THREADS", None)  # as in a user's shell
        command = [sys.executable, "-m", "cluster", "generate", str(undisturbed.folder.path), *prompts, "--out", out]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == "" and len(done.stdout.splitlines()) == len(prompts)
        return {path.name: path.read_bytes() for path in (tmp_path / out).glob("*.png")}

    alone = draw("alone", "a red circle")
    beside = draw("beside", "two blue stars", "a red circle")
    assert alone["a_red_circle_000000.png"] == beside["a_red_circle_000000.png"]


def test_the_console_is_clean(undisturbed: Run) -> None:
    text = undisturbed.text()
    for word in ("Warning", "WARNING", "Traceback", "deprecated", "INFO"):
        assert word not in text, text


def test_a_step_is_trained_again_to_the_same_numbers(undisturbed: Run) -> None:
    folder, row = undisturbed.folder, undisturbed.rows()[-1]
    last = int(row["step"])
    assert [path.name for path in sorted(folder.groups.iterdir())] == [f"step-{last - 1:06d}", f"step-{last:06d}"]
    before = {path: path.stat().st_mtime_ns for path in folder.checkpoints.rglob("*")}
    told = bicot("replay", str(folder.path), str(last))
    assert {path: path.stat().st_mtime_ns for path in folder.checkpoints.rglob("*")} == before
    for line in (
        f"ok     weights that train: {os.path.relpath(folder.checkpoints, ROOT)}/step-{last - 1:06d}: ",
        "ok     semantic ratio: mean ",
        "ok     image ratio: mean ",
        "ok     the run's own step: ",
    ):
        assert line in told
    (again,) = read_json_lines(folder.path / "replay" / "metrics.jsonl")
    for name in ("loss", "kl", "grad_norm", "lr", "tokens", "entropy/image"):
        assert again[name] == pytest.approx(row[name], rel=1e-5, abs=1e-7), name

    told = bicot("replay", str(folder.path), str(last - 1), "learner.objective.beta=0")
    assert "-      KL to the reference: not measured" in told and "settings are changed" in told


def test_the_run_ends_what_it_started(undisturbed: Run) -> None:
    for log in ("image-0.log", "semantic-0.log", "learner-0.log"):
        assert not alive(undisturbed.pid_of(log))


def test_interrupted_killed_and_resumed_is_the_same_run(undisturbed: Run, tmp_path: Path) -> None:
    """Ctrl-C, --resume, kill -9 of everything, --resume: the weights of the undisturbed run."""
    run = Run(tmp_path / "run", *REPEATABLE)
    run.wait_for(1)
    processes = [run.pid_of(log) for log in ("image-0.log", "semantic-0.log", "learner-0.log")]
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does, to every process of the group
    assert run.finish(120) == 130, run.text()
    assert "--resume" in run.text() and not any(alive(pid) for pid in processes)
    killed = Run(tmp_path / "run", *REPEATABLE, "--resume")
    killed.wait_for(3)
    killed.kill()
    resumed = Run(tmp_path / "run", *REPEATABLE, "--resume")
    assert resumed.finish() == 0, resumed.text()
    assert [row["step"] for row in resumed.rows()] == [1, 2, 3, 4]
    expected, found = final_weights(undisturbed), final_weights(resumed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], rtol=0, atol=1e-6), name


def test_weights_by_broadcast_are_the_same_run(undisturbed: Run, tmp_path: Path) -> None:
    """One broadcast to all actors, of which one dies and is replaced: log-probs and weights of the object store."""
    run = Run(tmp_path / "run", *REPEATABLE, "weights.transport=nccl")
    run.wait_for(1)
    os.kill(run.pid_of("image-0.log"), signal.SIGKILL)
    assert run.finish() == 0, run.text()
    assert "image-0 died" in (run.folder.logs / "driver.log").read_text()
    for row in run.rows():
        assert row["logprob_gap_max/image"] < 1e-4 and row["logprob_gap_max/semantic"] < 1e-3
    expected, found = final_weights(undisturbed), final_weights(run)
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], rtol=0, atol=1e-6), name


def test_a_run_outlives_a_dead_actor_and_a_sleeping_reward(disturbed: Watched) -> None:
    """The actor is replaced, the reward is missing and never 0, and staleness stays within its bound.

    SIGTERM ends it with a checkpoint, and not by the handler of Ray, which aborts the driver after three seconds.
    """
    run = disturbed.run
    assert list(run.folder.checkpoints.iterdir())
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and STEPS <= len(rows) < 60
    assert max(row["staleness/image"] for row in rows) <= 1 and max(row["staleness/semantic"] for row in rows) <= 1
    assert max(row["staleness/semantic"] for row in rows) > 0
    log = (run.folder.logs / "driver.log").read_text()
    assert "image-0 died" in log and "SIGTERM received" not in log
    for row in rows:
        assert row["reward_missing/attributes"] == 8 and "reward/attributes" not in row
        assert row["reward_missing/detector"] == 0 and row["grad_norm"] > 0


def test_redis_that_stops_ends_the_run_by_name(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "steps=200", "checkpoint.every=1000", "buffer.reconnect_s=3")
    run.wait_for(1)
    began = time.monotonic()
    redis = next(
        pid for pid in descendants(run.process.pid) if "redis-server" in Path(f"/proc/{pid}/cmdline").read_text()
    )
    os.kill(redis, signal.SIGKILL)
    assert run.finish(90) == 1, run.text()
    assert time.monotonic() - began < 60
    assert "buffer" in run.text() and "Traceback" not in run.text()


def test_a_dead_learner_ends_the_run_by_name(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "steps=200", "checkpoint.every=1000")
    run.wait_for(1)
    os.kill(run.pid_of("learner-0.log"), signal.SIGKILL)
    assert run.finish(90) == 1, run.text()
    assert "learner-0 died" in run.text() and "Traceback" not in run.text()


def test_it_learns(tmp_path: Path) -> None:
    """A quarter of the demo raises the held-out strict accuracy, on prompts that training never sees."""
    run = Run(
        tmp_path / "run", "steps=25", "rollout.group_size=8", "rollout.groups_per_step=8", "buffer.capacity=64",
        "learner.optimizer.lr=1.5e-4", "checkpoint.every=25",
        "held_out={metric: strict, test: shapes/data/test.jsonl, test_members: 2}",
    )  # fmt: skip
    assert run.finish(500) == 0, run.text()
    scores = json.loads(run.folder.summary.read_text())["held_out"]
    assert scores["test_after"]["all"] - scores["test_before"]["all"] > 0.08, scores
    pairs = [json.loads(path.read_text()) for path in sorted(run.folder.samples.glob("test-*.json"))]
    assert [pair["step"] for pair in pairs] == [0, 25]
    assert [one["prompt"] for one in pairs[0]["samples"]] == [one["prompt"] for one in pairs[1]["samples"]]
    assert "data:image/png;base64," in run.folder.report.read_text()
