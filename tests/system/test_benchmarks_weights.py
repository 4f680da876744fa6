"""The weights' benchmark: every way brings the learner's weights into the other process, and the figures come out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import ray
import torch

from benchmarks.__main__ import main
from benchmarks.scales import make_model
from benchmarks.weights import Way, check, image_ways, session
from benchmarks.weights_receivers import ImageReceiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def no_shared_ray() -> None:
    """The benchmark starts a Ray of its own."""
    ray.shutdown()


def test_a_way_that_leaves_weights_behind_is_not_measured() -> None:
    with session(make_model("tiny", "cpu", torch.float32)) as learner:
        actor = ray.remote(num_cpus=1)(ImageReceiver).remote("tiny", "cpu", torch.float32)
        for name, way in image_ways(learner, actor).items():
            check(learner, actor, name, way)
        lost = Way(lambda: None, lambda: None)
        with pytest.raises(RuntimeError, match="lost: the actor has other weights than the learner"):
            check(learner, actor, "lost", lost)


def test_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.json"
    assert main(["weights", "--json", str(path), "--repeats", "1"]) == 0
    assert "Weights into an image actor at tiny" in capsys.readouterr().out
    image, semantic = json.loads(path.read_text())["tables"]
    assert [row["case"] for row in image["rows"]][-2:] == ["object_store", "broadcast"]
    assert [row["case"] for row in semantic["rows"]] == ["saved files, vLLM anew", "object_store", "broadcast"]
    for row in (*image["rows"], *semantic["rows"]):
        figures = [value for key, value in row.items() if key != "case" and value is not None]
        assert len(figures) == len(row) - 1 - (row["case"] == "broadcast")
        assert all(math.isfinite(figure) and figure > 0 for figure in figures), row
