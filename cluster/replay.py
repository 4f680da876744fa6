"""`bicot replay`: a step of a run trained again by the learner alone, on the groups that the run kept.

A learner of one rank trains in this process, without Ray, so `breakpoint()` and profilers work. Several ranks use the
same pool as the run. A replay reads the run's checkpoints and changes none of the run's files; its output goes into
the folder `replay` of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from recipe.config import RunConfig, load_config
from recipe.errors import ConfigError, RunError
from recipe.public_config import public_override
from recipe.run_folder import RunFolder, append_json, read_json_lines

if TYPE_CHECKING:  # a wrong call is told before torch and DeepSpeed are imported
    from learner.replay import Replayed
    from transport.trajectory import TrajectoryGroup

MAY_CHANGE = ("learner", "rewards", "policy", "steps")
"""What the learner is made of, and so what a replay can change."""


def replay_config(run: Path, overrides: Sequence[str]) -> RunConfig:
    """The config of the run in the folder `run`, with the learner's own settings changed.

    Raises:
        RunError: the folder holds no run, or an override is of another part than the learner.
        ConfigError: a key is unknown or out of bounds.
    """
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise RunError(f"{run} is no run folder: it has no {folder.config.name}")
    for override in overrides:
        key = override.partition("=")[0]
        if key.split(".")[0] not in MAY_CHANGE:
            raise ConfigError(
                f"override {key}=...: the groups are drawn already, so a replay changes {', '.join(MAY_CHANGE)}"
            )
    return load_config(folder.config, list(overrides))


def replay(config: RunConfig, run: Path, step: int, overrides: Sequence[str], console: Console) -> int:
    """Train the kept groups of `step` of the run in `run` again, and say what holds; 1 where an invariant does not.

    `config` is `replay_config`'s.

    Raises:
        RunError: no groups, or not all of them, are kept of the step, they or the checkpoint cannot be read, or the
            run's folder `replay` leads elsewhere.
    """
    folder = RunFolder(run)
    if config.learner.ranks == 1 and not config.learner.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as Ray has it for a rank that reserves none
    from cluster.invariants import beside, of_groups, of_training

    row = next((row for row in read_json_lines(folder.metrics) if row["step"] == step), None)
    groups = _kept(config, folder, step, row is not None)
    scratch = _scratch(folder)
    where = os.path.relpath(folder.path)
    console.print(f"bicot: step {step} of {where} again, logs in {os.path.relpath(scratch.logs)}", soft_wrap=True)
    replayed = _train(config, folder, scratch, step, len(groups), console)
    append_json(
        scratch.metrics, {"step": step, "overrides": [public_override(one) for one in overrides], **replayed.metrics}
    )
    found = [*of_groups(config, groups, step), *of_training(config, groups, replayed)]
    if row is not None:
        found.append(beside(config, replayed, row, bool(overrides)))
    for invariant in found:
        console.print(invariant.line(), markup=False, soft_wrap=True)
    if row is None:
        console.print(f"The run has no row of step {step} to compare with.", soft_wrap=True)
    else:
        console.print(_table(replayed.metrics, row))
    return 1 if any(invariant.ok is False for invariant in found) else 0


def _table(metrics: Mapping[str, float], row: Mapping[str, float]) -> Table:
    """Loss, gradient norm and the rest, beside the run's own."""
    from cluster.invariants import equal, shared

    table = Table("", "replay", "run", "difference", box=None)
    for name, ours in shared(metrics, row).items():
        if not name.startswith(("groups", "members")) or not equal(ours, row[name]):
            apart = "equal" if equal(ours, row[name]) else f"{ours - row[name]:+.1e}"
            table.add_row(name, f"{ours:.8g}", f"{row[name]:.8g}", apart)
    return table


def _scratch(folder: RunFolder) -> RunFolder:
    """The folder of a run's replays, made if need be; a link in it would lead into what is not theirs."""
    path = folder.path / "replay"
    for found in (path, *path.rglob("*")):
        if found.is_symlink():
            raise RunError(f"{found} is a link, and a replay writes into its own folder alone; remove the link")
    scratch = RunFolder(path)
    try:
        scratch.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot hold what the replay says: {error.strerror}") from error
    return scratch


def _kept(config: RunConfig, folder: RunFolder, step: int, trained: bool) -> list[TrajectoryGroup]:
    """All groups of a step; `trained` says whether the run has trained it, and so had them all."""
    from transport.errors import WireError
    from transport.group_files import GroupFiles

    files = GroupFiles(folder.groups)
    steps, asked = files.steps(), config.rollout.groups_per_step
    if step not in steps:
        kept = f"those of steps {', '.join(map(str, steps))} are" if steps else "none are"
        raise RunError(
            f"{folder.groups} keeps no groups of step {step}, {kept} there; rollout.keep_groups=N keeps those of "
            "a run's newest N steps"
        )
    if files.count(step) < asked:
        why = (
            "the run trained all of them, and the files of the others are gone"
            if trained
            else "the run ended while they were drawn, and never trained them"
        )
        raise RunError(f"{folder.groups} keeps {files.count(step)} of the {asked} groups of step {step}: {why}")
    try:
        return files.read(step)
    except WireError as error:
        raise RunError(str(error)) from error


def _train(
    config: RunConfig, folder: RunFolder, scratch: RunFolder, step: int, groups: int, console: Console
) -> Replayed:
    from policy.janus import CheckpointError
    from transport.errors import WireError

    try:
        if config.learner.ranks == 1:
            return _here(config, folder, scratch, step, groups, console)
        return asyncio.run(_on_ranks(config, folder, scratch, step, groups))
    except (CheckpointError, WireError) as error:
        raise RunError(str(error)) from error


def _here(
    config: RunConfig, folder: RunFolder, scratch: RunFolder, step: int, groups: int, console: Console
) -> Replayed:
    """One rank, in this process."""
    from cluster.pools.worker import log_to

    log_to(scratch.logs / "replay.log")
    sys.stdout = console.file  # a debugger's prompt goes to the terminal
    import torch

    from learner.loading import load_engine
    from learner.process_group import join
    from learner.replay import replay
    from transport.rendezvous import Endpoint

    learner = config.learner
    torch.set_num_threads(learner.threads)
    join(0, 1, Endpoint("127.0.0.1", 0), None, learner.deadline_s)
    try:
        engine = load_engine(config.policy, learner, config.steps)
        return replay(engine, config.rewards.weights, folder.checkpoints, folder.groups, step, groups)
    finally:
        torch.distributed.destroy_process_group()


async def _on_ranks(config: RunConfig, folder: RunFolder, scratch: RunFolder, step: int, groups: int) -> Replayed:
    """The run's own pool of learner ranks."""
    from cluster.pools.learner_ranks import LearnerRanks
    from cluster.pools.ray_session import RaySession
    from cluster.pools.worker import log_to
    from recipe.resources import alone

    log_to(scratch.logs / "driver.log")
    with contextlib.ExitStack() as stack:
        config = alone(config, "learner")
        stack.callback(RaySession.start(config).close)
        ranks = LearnerRanks(config, scratch, None, "replay")
        stack.callback(ranks.close)
        await ranks.start(config.ray.start_deadline_s)
        return await ranks.replay(folder, step, groups)
