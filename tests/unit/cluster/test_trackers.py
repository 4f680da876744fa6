"""What TensorBoard and Weights & Biases are told of a run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.monitor.trackers import trackers
from recipe.config import load_config
from recipe.run_folder import RunFolder

SECRETS = ["buffer.url=rediss://me:hush@host:6379/0", "rewards.services.0.options={api_key: hushhush}"]


def run_folder(path: Path, *overrides: str) -> RunFolder:
    folder = RunFolder(path)
    folder.create(load_config("deploy/runs/shapes.yaml", [f"folder={path}", *SECRETS, *overrides]), False, False)
    return folder


def told(folder: RunFolder, *overrides: str) -> None:
    """Two curves and a picture, to all trackers that the config asks for."""
    config = load_config("deploy/runs/shapes.yaml", list(overrides))
    for tracker in trackers(folder, config.metrics, "run"):
        tracker.scalars(1, {"reward/detector": 0.5})
        tracker.samples(1, np.zeros((1, 8, 8, 3), np.uint8), ["a plan"])
        tracker.close()


def test_tensorboard_is_written_unless_it_is_turned_off(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    told(folder, "metrics.tensorboard=false")
    assert not folder.tensorboard.exists()
    told(folder)
    events = EventAccumulator(str(folder.tensorboard)).Reload()
    assert events.Scalars("reward/detector")[0].value == 0.5
    (config,) = events.Tensors("config/text_summary")
    text = config.tensor_proto.string_val[0].decode()
    assert "lr: 0.00015" in text and "rediss://***@host" in text and "hush" not in text


@pytest.mark.skipif(find_spec("wandb") is None, reason="W&B is not installed")
def test_wandb_gets_keys_to_filter_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: what would be sent lies in the run's folder, and holds no secret, not even the command's."""
    monkeypatch.setattr("sys.argv", ["bicot", "train", "run.yaml", *SECRETS])
    folder = run_folder(tmp_path / "run")
    told(folder, "metrics.wandb={project: demo, mode: offline}")
    kept = b"".join(file.read_bytes() for file in folder.path.glob("wandb/**/*") if file.is_file())
    assert b"rewards.services.detector.weight" in kept and b"learner.optimizer.lr" in kept and b"hush" not in kept
