"""The rewards' benchmark: every case scores the same, and figures come out for every batch size."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.rewards import _prompts, calls_of, measure, noise
from rewards.models.hps import Hps
from rewards.models.tiny import write_tiny_hps

PICTURES, PROMPTS = noise(16, side=64), _prompts(16)


def test_every_case_scores_the_same(tmp_path: Path) -> None:
    reward = Hps(str(write_tiny_hps(tmp_path)), str(tmp_path))
    alone, together = (calls_of(size, reward, PICTURES, PROMPTS)() for size in (1, 8))
    assert len(alone) == 16 and together == pytest.approx(alone, abs=1e-5)


def test_true_sizes_know_their_limit(tmp_path: Path) -> None:
    reward = Hps(str(write_tiny_hps(tmp_path)), str(tmp_path))
    rows = measure("hps", reward, PICTURES, PROMPTS, (8,), repeats=1, flops_s=1e11)
    patches = 17 * 80 * (4 + 8) * 80 * 2 * 2  # two layers' matrices, 16 patches and a class token
    for row in rows:
        assert patches < row["GFLOP/picture"] * 1e9 < 3 * patches
        assert row["share of the limit"] == pytest.approx(row["pictures/s"] * row["GFLOP/picture"] / 100)


@pytest.mark.slow
def test_a_run_writes_every_figure(tmp_path: Path) -> None:
    assert main(["rewards", "--repeats", "1", "--json", str(tmp_path / "found.json")]) == 0
    by_batch, pixels = (table["rows"] for table in json.loads((tmp_path / "found.json").read_text())["tables"])
    assert [row["case"] for row in by_batch[:4]] == ["detector, 1", "detector, 8", "detector, 32", "detector, 64"]
    assert len(by_batch) == 4 * 8 and len(pixels) == 3
    figures = [value for row in by_batch + pixels for value in row.values() if not isinstance(value, str)]
    assert all(math.isfinite(value) and value > 0 for value in figures)
    assert all(row["x one by one"] == 1 for row in by_batch[::4])
