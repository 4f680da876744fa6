"""A resumed run goes on as if it had never stopped; damaged checkpoints are told apart and named."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_cases import WEIGHTS, random_groups
from learner_worker import Trained, train_and_resume

from learner import checkpoint
from learner.config import LearnerConfig, OptimizerConfig
from learner.engine import LearnerEngine
from learner.process_group import join
from policy.config import PolicyConfig
from policy.janus import CheckpointError, Policy, load_policy
from transport.rendezvous import Endpoint
from transport.trajectory import TrajectoryGroup


def config(stage: int = 0) -> LearnerConfig:
    optimizer = OptimizerConfig(lr=3e-3, schedule="cosine", warmup_steps=1, weight_decay=0.01)
    return LearnerConfig(zero_stage=stage, zero_persistence=0, optimizer=optimizer)


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> None:
    if not torch.distributed.is_initialized():
        join(0, 1, Endpoint("127.0.0.1", 0), None, deadline_s=60)


@pytest.fixture(scope="module")
def steps(tiny_policy: Policy) -> list[list[TrajectoryGroup]]:
    return [random_groups(tiny_policy, groups=2, members=3, seed=seed) for seed in range(4)]


def agree(both: tuple[Trained, Trained]) -> None:
    undisturbed, resumed = both
    for name, tensor in undisturbed.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name
    for mine, theirs in zip(resumed.metrics, undisturbed.metrics[2:], strict=True):
        told = {name: value for name, value in theirs.items() if not name.startswith("seconds/")}
        assert {name: mine[name] for name in told} == told
    assert resumed.metrics[0]["lr"] > resumed.metrics[1]["lr"] > 0


@pytest.mark.parametrize(
    "stage, dtype",
    [
        (0, "float32"),
        pytest.param(0, "bfloat16", marks=pytest.mark.slow),
        (2, "float32"),
        (2, "bfloat16"),
        pytest.param(3, "float32", marks=pytest.mark.slow),
        pytest.param(3, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_identical(
    tiny_config: PolicyConfig, steps: list[list[TrajectoryGroup]], tmp_path: Path, stage: int, dtype: str
) -> None:
    policy = tiny_config.model_copy(update={"dtype": dtype})
    agree(train_and_resume(policy, config(stage), steps, tmp_path))


@pytest.fixture(scope="module")
def saved(
    tiny_config: PolicyConfig, steps: list[list[TrajectoryGroup]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    engine = LearnerEngine(load_policy(tiny_config), "language_model", config(), total_steps=4)
    for number in (1, 2):
        engine.step(steps[number], WEIGHTS)
        checkpoint.save(engine, folder, keep=2)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` to spoil."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def engine(tiny_config: PolicyConfig) -> LearnerEngine:
    return LearnerEngine(load_policy(tiny_config), "language_model", config(), total_steps=4)


def test_what_a_folder_holds(folder: Path, engine: LearnerEngine, steps: list[list[TrajectoryGroup]]) -> None:
    assert [path.name for path in checkpoint.complete(folder)] == ["step-000002", "step-000001"]
    (folder / "step-000009.tmp").mkdir()
    newest = checkpoint.newest(folder)
    assert newest == folder / "step-000002"
    checkpoint.load(engine, newest)
    assert engine.steps == 2
    engine.step(steps[3], WEIGHTS)
    first, again = (checkpoint.save(engine, folder, keep=2).stat().st_ino for _ in range(2))
    assert first != again
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000003"]


def test_random_states_come_back(folder: Path, engine: LearnerEngine) -> None:
    checkpoint.load(engine, folder / "step-000002")
    torch.rand(3), random.random(), np.random.rand()
    checkpoint.save(engine, folder, keep=2)
    drawn = torch.rand(3).tolist(), random.random(), np.random.rand()
    checkpoint.load(engine, folder / "step-000002")
    assert drawn == (torch.rand(3).tolist(), random.random(), np.random.rand())


def test_damage_is_named_and_older_checkpoints_stay(
    folder: Path, caplog: pytest.LogCaptureFixture, engine: LearnerEngine
) -> None:
    file = next((folder / "step-000002" / "engine").glob("*model_states.pt"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert checkpoint.newest(folder) == folder / "step-000001"
    assert f"{file} has {len(whole) - 100} bytes instead of {len(whole)}" in caplog.text

    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(CheckpointError, match=f"{file} is damaged"):
        checkpoint.load(engine, folder / "step-000002")

    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing"):
        checkpoint.load(engine, folder / "step-000002")
    (folder / "step-000001" / "state.json").write_text('{"format": 1')
    assert checkpoint.newest(folder) is None
    assert "state.json cannot be read" in caplog.text


@pytest.mark.parametrize(
    "change, told",
    [
        ({"ranks": 2}, "it holds ranks 2, this run has 1"),
        ({"zero_stage": 3}, "it holds zero_stage 3, this run has 0"),
        ({"trained": {"lm_head.weight": [1, 2]}}, "it holds other tensors"),
        ({"format": 7}, "has format 7; this version reads 1"),
        ({"step": "1"}, "has step '1', which is no whole number"),
    ],
)
def test_checkpoints_of_other_runs(folder: Path, engine: LearnerEngine, change: dict[str, object], told: str) -> None:
    path = folder / "step-000001"
    state = json.loads((path / "state.json").read_text()) | change
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=told):
        checkpoint.load(engine, path)


@pytest.mark.parametrize("stage", [0, 3])
def test_export(tiny_config: PolicyConfig, steps: list[list[TrajectoryGroup]], tmp_path: Path, stage: int) -> None:
    engine = LearnerEngine(load_policy(tiny_config), "language_model", config(stage), total_steps=4)
    engine.step(steps[0], WEIGHTS)
    engine.export(tmp_path)
    read = load_policy(tiny_config.model_copy(update={"checkpoint": str(tmp_path)}))
    weights, base = read.model.state_dict(), load_policy(tiny_config).model.state_dict()
    trained = {name: tensor.clone() for name, tensor in engine.trained_tensors()}
    for name, tensor in trained.items():
        assert torch.equal(weights[name], tensor), name
        assert not torch.equal(tensor, base[name]), name
    for name in weights.keys() - trained.keys():
        assert torch.equal(weights[name], base[name]), name
