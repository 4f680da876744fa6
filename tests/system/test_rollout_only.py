"""Rollouts and rewards alone, then the learner alone on what they left: in one process, and as two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from run_process import bicot

from recipe.run_folder import RunFolder, read_json_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_groups_are_drawn_and_then_trained(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "rollout")
    told = bicot(
        "rollout", "deploy/runs/shapes.yaml", "--groups", "2", "--folder", str(folder.path), "rollout.group_size=4"
    )
    for line in (
        "ok     groups: 2 of 4 members, 2 of 4 are asked for",
        "ok     weights that drew: version 0",
        "ok     reward detector: mean ",
    ):
        assert line in told
    assert len(list((folder.groups / "step-000001").iterdir())) == 2
    rows = json.loads((folder.samples / "rollout.json").read_text("utf-8"))["samples"]
    assert len(rows) == 8 and set(rows[0]["rewards"]) == {"detector", "attributes", "tidiness", "strict"}
    for row in rows:
        assert Image.open(folder.samples / row["png"]).size == (48, 48) and row["cot"]
    assert not folder.checkpoints.exists() or not list(folder.checkpoints.iterdir())

    for ranks in (1, 2):
        told = bicot("replay", str(folder.path), "1", f"learner.ranks={ranks}")
        assert "ok     weights that train: the policy's checkpoint: what step 1 began with" in told
        assert "ok     image ratio: mean " in told and "ok     semantic ratio: mean " in told
        assert "ok     KL to the reference: 0, 0 within" in told
        assert "has no row of step 1 to compare with" in told
    one, two = read_json_lines(folder.path / "replay" / "metrics.jsonl")
    for name in ("loss", "grad_norm", "tokens/semantic", "tokens/image", "entropy/image"):
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
