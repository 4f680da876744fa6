"""A run long enough to learn something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_process import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_it_learns(tmp_path: Path) -> None:
    """A quarter of the demo raises the held-out strict accuracy, on prompts that training never sees."""
    run = Run(
        tmp_path / "run", "steps=25", "rollout.group_size=8", "rollout.groups_per_step=8", "buffer.capacity=64",
        "learner.optimizer.lr=1.5e-4", "checkpoint.every=25",
        "held_out={metric: strict, test: shapes/data/test.jsonl, test_members: 2}",
    )  # fmt: skip
    assert run.finish(900) == 0, run.text()
    scores = json.loads(run.folder.summary.read_text())["held_out"]
    assert scores["test_after"]["all"] - scores["test_before"]["all"] > 0.08, scores
    pairs = [json.loads(path.read_text()) for path in sorted(run.folder.samples.glob("test-*.json"))]
    assert [pair["step"] for pair in pairs] == [0, 25]
    assert [one["prompt"] for one in pairs[0]["samples"]] == [one["prompt"] for one in pairs[1]["samples"]]
    assert "data:image/png;base64," in run.folder.report.read_text()
