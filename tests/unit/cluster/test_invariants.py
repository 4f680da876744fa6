"""A healthy step passes every invariant; each thing that can be wrong with one is told by name."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import WEIGHTS, random_groups
from rich.console import Console

from cluster.invariants import Invariant, beside, of_groups, of_training
from cluster.replay import replay, replay_config
from cluster.rollout_folder import make_folder, rollout_config
from learner.loading import load_engine
from learner.process_group import join
from learner.replay import Replayed
from policy.config import PolicyConfig
from policy.janus import Policy
from recipe.config import RunConfig, dump_config
from recipe.errors import ConfigError, RunError
from recipe.run_folder import RunFolder, append_json
from transport.group_files import GroupFiles
from transport.rendezvous import Endpoint
from transport.trajectory import Member, TrajectoryGroup

Groups = list[TrajectoryGroup]


@pytest.fixture(scope="module")
def config(tiny_config: PolicyConfig) -> RunConfig:
    services = [{"name": name, "target": "a:B", "weight": weight} for name, weight in WEIGHTS.items()]
    return RunConfig.model_validate({
        "folder": "run", "steps": 4, "policy": tiny_config.model_dump(), "prompts": {"train": "prompts.jsonl"},
        "rewards": {"services": services}, "rollout": {"groups_per_step": 3, "group_size": 4},
    })  # fmt: skip


@pytest.fixture(scope="module")
def healthy(tiny_policy: Policy) -> Groups:
    """Drawn by the policy itself, every member with every reward but for one group that goes without `extra`."""
    made = random_groups(tiny_policy, groups=3, members=4, staleness=0.0)
    return [with_members(group, lambda m: replaced(m, tidy=m.rewards["tidy"] or 0.3)) for group in made]


@pytest.fixture(scope="module")
def replayed(config: RunConfig, healthy: Groups) -> Replayed:
    """The first step, as the learner takes it."""
    if not torch.distributed.is_initialized():
        join(0, 1, Endpoint("127.0.0.1", 0), None, deadline_s=60)
    engine = load_engine(config.policy, config.learner, config.steps)
    return Replayed(1, 0, None, (), engine.step(healthy, config.rewards.weights))


def with_members(group: TrajectoryGroup, change: Callable[[Member], Member]) -> TrajectoryGroup:
    return dataclasses.replace(group, members=tuple(change(member) for member in group.members))


def replaced(member: Member, **rewards: float | None) -> Member:
    return dataclasses.replace(member, rewards={**member.rewards, **rewards})


def wrong(found: list[Invariant]) -> list[str]:
    return [one.subject for one in found if one.ok is False]


def on_the_first(groups: Groups, change: Callable[[Member], Member]) -> Groups:
    """The groups with one member changed."""
    first, *others = groups[0].members
    return [dataclasses.replace(groups[0], members=(change(first), *others)), *groups[1:]]


def segment(name: str, **changes: Any) -> Callable[[Groups], Groups]:
    def change(member: Member) -> Member:
        return dataclasses.replace(member, **{name: dataclasses.replace(getattr(member, name), **changes)})

    return lambda groups: on_the_first(groups, change)


def test_a_healthy_step_passes_all(config: RunConfig, healthy: Groups, replayed: Replayed) -> None:
    found = [*of_groups(config, healthy, 1), *of_training(config, healthy, replayed)]
    assert wrong(found) == []
    subjects = [one.subject for one in found if one.ok]
    for subject in ("semantic ratio", "image ratio", "KL to the reference", "advantages, mean", "gradient norm"):
        assert subject in subjects
    assert "1 of 3 groups without it" in next(one.text for one in found if one.subject == "reward extra")


@pytest.mark.parametrize(
    ("hurt", "subject"),
    [
        (lambda groups: groups[:2], "groups"),
        (lambda groups: [dataclasses.replace(one, members=one.members[:3]) for one in groups], "groups"),
        (segment("image", weight_version=1), "weights that drew"),
        (segment("semantic", weight_version=-1), "weights that drew"),
        (segment("semantic", logprobs=torch.tensor([-1.0, float("nan")])), "semantic tokens"),
        (segment("image", guided_logprobs=torch.full((16,), 0.1)), "image tokens"),
        (segment("image", token_ids=torch.tensor([1, 2])), "image tokens"),
        (lambda groups: on_the_first(groups, lambda m: replaced(m, match=None)), "reward match"),
        (lambda groups: on_the_first(groups, lambda m: replaced(m, tidy=float("nan"))), "reward tidy"),
    ],
)
def test_what_is_wrong_with_the_groups_is_named(
    hurt: Callable[[Groups], Groups], subject: str, config: RunConfig, healthy: Groups
) -> None:
    assert wrong(of_groups(config, hurt(healthy), 1)) == [subject]


def test_a_reward_that_failed_is_told_from_one_that_does_not_apply(config: RunConfig, healthy: Groups) -> None:
    none = [with_members(group, lambda member: replaced(member, extra=None)) for group in healthy]
    told = {one.subject: one.ok for one in of_groups(config, none, 1)}
    assert told["reward extra"] is None  # the files cannot tell
    assert wrong(of_groups(config, none, 1, failures={"extra": 0.0})) == []
    assert wrong(of_groups(config, none, 1, failures={"extra": 3.0})) == ["reward extra"]


def test_large_advantages_have_a_mean_of_0_by_their_size(config: RunConfig, healthy: Groups) -> None:
    objective = config.learner.objective.model_copy(update={"std": False})
    plain = config.model_copy(update={"learner": config.learner.model_copy(update={"objective": objective})})
    large = [with_members(group, lambda m: replaced(m, match=1e6 * (m.rewards["match"] or 0.5))) for group in healthy]
    assert wrong(of_groups(plain, large, 1)) == []


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"ratio_mean/semantic": 1.01}, "semantic ratio"),
        ({"ratio_mean/image": 0.99}, "image ratio"),
        ({"logprob_gap_max/image": 0.1}, "image log-probs"),
        ({"kl": 1e-4}, "KL to the reference"),
        ({"tokens/image": 47.0}, "tokens trained"),
        ({"loss": float("nan")}, "loss"),
        ({"grad_norm": float("inf")}, "gradient norm"),
        ({"grad_norm": 0.0}, "gradient norm"),
    ],
)
def test_what_is_wrong_with_the_training_is_named(
    changes: dict[str, float], subject: str, config: RunConfig, healthy: Groups, replayed: Replayed
) -> None:
    hurt = dataclasses.replace(replayed, metrics={**replayed.metrics, **changes})
    assert wrong(of_training(config, healthy, hurt)) == [subject]


def test_off_policy_the_ratio_is_told_and_not_judged(config: RunConfig, healthy: Groups, replayed: Replayed) -> None:
    other = dataclasses.replace(
        replayed, step=3, start=1, metrics={**replayed.metrics, "ratio_mean/image": 1.4, "kl": 0.2}
    )
    found = of_training(config, healthy, other)
    assert wrong(found) == []
    told = {one.subject: one.ok for one in found}
    assert told["weights that train"] is None and told["image ratio"] is None and told["semantic ratio"] is None


def test_beside_the_runs_own_row(config: RunConfig, replayed: Replayed) -> None:
    row = {**replayed.metrics, "seconds/train": 0.0, "step": 1.0}
    assert beside(config, replayed, row, changed=False).ok is True
    assert beside(config, replayed, {**row, "loss": row["loss"] + 1e-7}, changed=False).ok is True
    other = beside(config, replayed, {**row, "grad_norm": 1.01 * row["grad_norm"]}, changed=False)
    assert other.ok is False and "grad_norm" in other.text
    assert beside(config, replayed, {**row, "grad_norm": 0.0}, changed=True).ok is None
    assert beside(config, replayed, {**row, "loss": None, "kl": "0"}, changed=False).ok is True  # type: ignore[dict-item]
    broken = dataclasses.replace(replayed, metrics={**replayed.metrics, "loss": float("nan")})
    assert beside(config, broken, {**row, "loss": float("nan")}, changed=False).ok is True
    assert beside(config, broken, row, changed=False).ok is False


def test_what_cannot_be_replayed_is_one_sentence(
    config: RunConfig, healthy: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def again(step: int, *overrides: str) -> None:
        replay(replay_config(tmp_path, overrides), tmp_path, step, overrides, Console(quiet=True))

    with pytest.raises(RunError, match=r"is no run folder: it has no config\.yaml"):
        again(1)
    (tmp_path / "config.yaml").write_text(dump_config(config), "utf-8")
    with pytest.raises(RunError, match=r"keeps no groups of step 1, none are there; rollout\.keep_groups=N"):
        again(1)
    with pytest.raises(ConfigError, match=r"override rollout\.group_size=\.\.\.: the groups are drawn already"):
        again(1, "rollout.group_size=2")
    files = GroupFiles(tmp_path / "groups")
    paths = [files.write(2, group) for group in healthy[:2]]
    with pytest.raises(RunError, match=r"keeps no groups of step 1, those of steps 2 are there"):
        again(1)
    with pytest.raises(RunError, match=r"keeps 2 of the 3 groups of step 2: the run ended while they were drawn"):
        again(2)
    append_json(tmp_path / "metrics.jsonl", {"step": 2})
    with pytest.raises(RunError, match=r"keeps 2 of the 3 groups of step 2: the run trained all of them"):
        again(2)
    files.write(2, healthy[2])
    whole, link = paths[0].read_bytes(), tmp_path / "replay"
    link.symlink_to(".")
    with pytest.raises(RunError, match=r"replay is a link"):
        again(2)
    link.unlink()
    link.touch()
    with pytest.raises(RunError, match=r"replay cannot hold what the replay says"):
        again(2)
    paths[0].write_bytes(whole[:-9])
    with pytest.raises(RunError, match=r"00000000\.group cannot be read: damaged"):
        again(2)
    paths[0].unlink()
    for spoil in (lambda: paths[0].symlink_to("nowhere"), lambda: (paths[0].unlink(), paths[0].mkdir())):
        spoil()
        with pytest.raises(RunError, match=r"00000000\.group cannot be read: "):
            again(2)
    (tmp_path / "metrics.jsonl").write_text("5\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl:1 is no row"):
        again(2)


def test_a_rollout_takes_the_place_of_a_rollout_alone(config: RunConfig, tmp_path: Path) -> None:
    folder, out = RunFolder(tmp_path / "run"), io.StringIO()
    asked = rollout_config(config, str(folder.path), 1000)
    assert (asked.rollout.groups_per_step, asked.rollout.groups_in_flight) == (1000, 6)
    for _ in range(2):
        make_folder(folder, asked, Console(file=out))
    (aside,) = (path for path in tmp_path.iterdir() if path != folder.path)
    assert aside.name in out.getvalue() and (aside / "config.yaml").is_file()
    append_json(folder.metrics, {"step": 1})
    with pytest.raises(RunError, match=r"holds a run that `bicot rollout` did not make; --folder PATH"):
        make_folder(folder, asked, Console(file=out))
    folder.metrics.unlink()
    (folder.samples / "rollout.json").unlink()
    with pytest.raises(RunError, match=r"holds a run that `bicot rollout` did not make; --folder PATH"):
        make_folder(folder, asked, Console(file=out))
    assert len(list(tmp_path.iterdir())) == 2
