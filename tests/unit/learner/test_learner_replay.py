"""A step trained again on its kept groups gives the numbers it gave, from wherever the learner has to begin."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from learner_cases import WEIGHTS, random_groups

from learner import checkpoint
from learner.config import LearnerConfig, OptimizerConfig
from learner.engine import LearnerEngine
from learner.loading import load_engine
from learner.process_group import join
from learner.replay import replay
from policy.config import PolicyConfig
from policy.janus import Policy
from transport.errors import WireError
from transport.group_files import GroupFiles
from transport.rendezvous import Endpoint

GROUPS, STEPS, SAVED = 2, 4, 2
SETTINGS = LearnerConfig(optimizer=OptimizerConfig(lr=3e-3, schedule="linear"))


@dataclass(frozen=True, slots=True)
class Kept:
    """A run of `STEPS` steps with a checkpoint of step `SAVED`: its metrics by step, and its folders."""

    metrics: dict[int, dict[str, float]]
    checkpoints: Path
    groups: Path


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> None:
    if not torch.distributed.is_initialized():
        join(0, 1, Endpoint("127.0.0.1", 0), None, deadline_s=60)


@pytest.fixture(scope="module")
def run(tiny_policy: Policy, tiny_config: PolicyConfig, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("run")
    kept = Kept({}, folder / "checkpoints", folder / "groups")
    engine = fresh(tiny_config)
    for step in range(1, STEPS + 1):
        groups = random_groups(tiny_policy, groups=GROUPS, members=3, seed=step)
        for group in groups:
            GroupFiles(kept.groups).write(step, group)
        kept.metrics[step] = engine.step(groups, WEIGHTS)
        if step == SAVED:
            checkpoint.save(engine, kept.checkpoints, keep=1)
    return kept


def fresh(policy: PolicyConfig) -> LearnerEngine:
    return load_engine(policy, SETTINGS, total_steps=STEPS)


@pytest.mark.parametrize(("step", "start", "between"), [(1, 0, ()), (2, 0, (1,)), (3, SAVED, ()), (4, SAVED, (3,))])
def test_the_same_step_again(
    step: int, start: int, between: tuple[int, ...], run: Kept, tiny_config: PolicyConfig
) -> None:
    again = replay(fresh(tiny_config), WEIGHTS, run.checkpoints, run.groups, step, GROUPS)
    assert (again.start, again.between, again.version, again.exact) == (start, between, step - 1, True)
    assert (again.path is None) == (start == 0)
    for name in ("loss", "kl", "grad_norm", "lr", "tokens", "ratio_mean/image", "entropy/semantic"):
        assert again.metrics[name] == pytest.approx(run.metrics[step][name], rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("left", [0, 1])
def test_without_the_groups_between_it_is_told_to_be_another_step(
    left: int, run: Kept, tiny_config: PolicyConfig, tmp_path: Path
) -> None:
    """None, or not all, of the groups of step 3 are kept: step 4 starts from the weights of the checkpoint."""
    groups = tmp_path / "groups"
    shutil.copytree(run.groups, groups)
    for file in sorted((groups / "step-000003").iterdir())[left:]:
        file.unlink()
    again = replay(fresh(tiny_config), WEIGHTS, run.checkpoints, groups, 4, GROUPS)
    assert (again.version, again.between, again.exact) == (SAVED, (), False)
    assert again.metrics["kl"] != pytest.approx(run.metrics[4]["kl"], rel=1e-3)


def test_a_replay_leaves_the_run_as_it_was(run: Kept, tiny_config: PolicyConfig) -> None:
    def seen() -> dict[Path, tuple[int, int]]:
        files = [path for path in run.checkpoints.parent.rglob("*") if path.is_file()]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    before = seen()
    replay(fresh(tiny_config), WEIGHTS, run.checkpoints, run.groups, 4, GROUPS)
    assert seen() == before and len(before) > STEPS * GROUPS


def test_the_newest_checkpoint_up_to_a_step(run: Kept) -> None:
    assert checkpoint.newest(run.checkpoints, at_most=SAVED - 1) is None
    for bound in (SAVED, SAVED + 5, None):
        found = checkpoint.newest(run.checkpoints, at_most=bound)
        assert found and found.name == f"step-{SAVED:06d}"


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: {"token_ids": ids + 10**6},
        lambda ids: {"prompt_ids": ids + 10**6},
        lambda ids: {"prompt_ids": ids[:0]},
    ],
)
def test_groups_of_another_policy_are_told(
    change: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    tiny_policy: Policy,
    tiny_config: PolicyConfig,
    tmp_path: Path,
) -> None:
    (group,) = random_groups(tiny_policy, groups=1, members=1)
    image = dataclasses.replace(group.members[0].image, **change(group.members[0].image.token_ids))
    member = dataclasses.replace(group.members[0], image=image)
    GroupFiles(tmp_path).write(1, dataclasses.replace(group, members=(member,)))
    with pytest.raises(WireError, match=r"group 0 of step 1 is none that this policy draws: .* policy\.checkpoint "):
        replay(fresh(tiny_config), WEIGHTS, tmp_path / "none", tmp_path, 1, 1)
