"""A whole run that nobody disturbs, every part real, and others that have to end as it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_process import ROOT, STEPS, Run, alive, bicot
from safetensors.torch import load_file

from recipe.run_folder import read_json_lines

REPEATABLE = ["rollout.staleness=0", "rollout.groups_in_flight=1"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


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
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["staleness/image"] == row["staleness/semantic"] == 0
        assert row["logprob_gap_max/image"] < 1e-4 and row["logprob_gap_max/semantic"] < 1e-3
        assert row["grad_norm"] > 0
    assert rows[-1]["kl"] > 1e-6  # the policy did move between the syncs


def test_what_a_run_leaves_behind(undisturbed: Run) -> None:
    summary = json.loads(undisturbed.folder.summary.read_text())
    assert summary["steps"] == STEPS and summary["status"] == "finished" and summary["pictures_per_s"] > 0
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
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False,
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


def test_disturbed_interrupted_killed_and_resumed_is_the_same_run(undisturbed: Run, tmp_path: Path) -> None:
    """A dead actor that is replaced, Ctrl-C, --resume, kill -9 of everything, --resume; weights travel by broadcast.

    Log-probs and weights are those of the undisturbed run, whose weights went through the object store.
    """
    arguments = [*REPEATABLE, "weights.transport=nccl"]
    run = Run(tmp_path / "run", *arguments)
    run.wait_for(1)
    os.kill(run.pid_of("image-0.log"), signal.SIGKILL)
    run.wait_for(3)
    assert "image-0 died" in (run.folder.logs / "driver.log").read_text()
    processes = [run.pid_of(log) for log in ("image-0.log", "semantic-0.log", "learner-0.log")]
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does, to every process of the group
    assert run.finish() == 130, run.text()
    assert "--resume" in run.text() and not any(alive(pid) for pid in processes)
    killed = Run(tmp_path / "run", *arguments, "--resume")
    killed.wait_for(5)
    killed.kill()
    resumed = Run(tmp_path / "run", *arguments, "--resume")
    assert resumed.finish() == 0, resumed.text()
    rows = resumed.rows()
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["logprob_gap_max/image"] < 1e-4 and row["logprob_gap_max/semantic"] < 1e-3
    expected, found = final_weights(undisturbed), final_weights(resumed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], rtol=0, atol=1e-6), name
