"""`bicot check` tells all that is wrong, and commands tell a wrong source before they load anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from cluster.cli import main

RUNS = ROOT / "deploy/runs"


@pytest.mark.parametrize("memory", [[], ["image.gpus=1", "ray.gpu_memory_gb=80", "ray.address=auto"]])
def test_a_wrong_reward_does_not_hide_the_rest(memory: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "rewards.services.detector.target=shapes.rewards:Detectr"
    assert main(["check", str(RUNS / "shapes.yaml"), wrong, *memory]) == 1
    told = capsys.readouterr().out
    assert "WRONG  reward detector" in told and "has no class 'Detectr'" in told
    assert "memory of image" in told and told.count("WRONG") == 1


def test_an_empty_disk_is_told_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instruction, prompts, rewards, checkpoint, and both kinds of resources that a small machine lacks."""
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(RUNS / "t2i_r1_7b.yaml")]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG")]
    for subject in ("policy.templates.instruction", "prompts.train", "reward hps", "reward vqa", "policy"):
        assert any(line.startswith(f"WRONG  {subject}:") for line in wrong)
    resources = next(line for line in wrong if "resources" in line)
    assert "CPUs" in resources and "GPUs together and this machine has 0" in resources and "learner.gpus" in resources


def test_generate_tells_a_wrong_source_before_it_makes_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures"
    assert main(["generate", str(tmp_path / "nope"), "a red circle", "--out", str(out)]) == 1
    assert "neither a run config nor a run folder" in capsys.readouterr().err and not out.exists()


@pytest.mark.slow
def test_generate_tells_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "pictures")
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "generate", str(RUNS / "shapes.yaml"), "a red circle", "--out", out],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "cannot be made or written" in done.stderr and "Traceback" not in done.stderr


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m cluster config | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["base", "0"] and done.stderr == ""


def test_a_reward_s_key_goes_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "rewards.services.hps.weight"]) == 0
    assert capsys.readouterr().out.startswith("rewards.services.N.weight\n")
