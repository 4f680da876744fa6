"""The rewards' benchmark: figures of a reward come out for every batch size."""

import math
from pathlib import Path

from benchmarks.rewards import measure
from rewards.tiny import write_tiny_hps
from shapes.rewards import Tidiness


def test_every_batch_size_has_its_figures(tmp_path: Path) -> None:
    from rewards.hps import Hps

    file = write_tiny_hps(tmp_path)
    for reward, side in ((Tidiness(), 48), (Hps(str(file), str(tmp_path)), 64)):
        rows = measure("reward", reward, side, (8, 16), repeats=1)
        assert [row["case"] for row in rows] == ["reward, 1", "reward, 8", "reward, 16"]
        assert all(math.isfinite(row["pictures/s"]) and row["pictures/s"] > 0 for row in rows)
        assert rows[0]["x one by one"] == 1
