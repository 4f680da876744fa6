"""What `bicot rollout` leaves, and the config that it leaves it by."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence

from rich.console import Console

from recipe.config import RunConfig
from recipe.errors import RunError
from recipe.run_folder import RunFolder, write_atomically
from transport.trajectory import TrajectoryGroup

TABLE = "rollout.json"
"""In `samples`: the table of what was drawn, which no other command writes."""
STEP = 1
"""The step that the groups are kept as: the first, from the policy's own weights."""


def rollout_config(config: RunConfig, folder: str, groups: int) -> RunConfig:
    """The config of a run in `folder` whose first step takes `groups` groups, and keeps them."""
    together = config.rollout.groups_in_flight or 2 * config.rollout.groups_per_step
    rollout = {"groups_per_step": groups, "staleness": 0, "keep_groups": 1, "groups_in_flight": together}
    shown = {"port": None, "tensorboard": False, "wandb": None}
    return config.model_copy(update={
        "folder": folder,
        "held_out": None,
        "rollout": config.rollout.model_copy(update=rollout),
        "buffer": config.buffer.model_copy(update={"capacity": max(config.buffer.capacity, groups)}),
        "metrics": config.metrics.model_copy(update=shown),
    })  # fmt: skip


def make_folder(folder: RunFolder, config: RunConfig, console: Console) -> None:
    """Make the folder of a rollout, and move one that an earlier rollout left there aside.

    Raises:
        RunError: it holds the run of another command.
    """
    if folder.config.is_file() and (folder.metrics.exists() or not (folder.samples / TABLE).is_file()):
        raise RunError(f"{folder.path} holds a run that `bicot rollout` did not make; --folder PATH takes another")
    aside = folder.create(config, resume=False, fresh=True)
    write_samples(folder, [])  # says whose folder it is, also where the rollout fails
    if aside:
        console.print(f"what `bicot rollout` left there is in {os.path.relpath(aside)} now", soft_wrap=True)


def write_samples(folder: RunFolder, groups: Sequence[TrajectoryGroup]) -> None:
    """The pictures as PNG, and one table of them: prompt, CoT and rewards."""
    rows = []
    for group in groups:
        prompt = re.sub(r"[^A-Za-z0-9]+", "_", group.prompt.prompt).strip("_")[:60]
        for number, member in enumerate(group.members):
            assert member.png is not None
            name = f"rollout-{group.index:04d}-{number}-{prompt}.png"
            (folder.samples / name).write_bytes(member.png)
            rows.append({
                "prompt": group.prompt.prompt, "family": group.prompt.group, "cot": member.cot,
                "rewards": member.rewards, "png": name,
            })  # fmt: skip
    table = json.dumps({"step": STEP, "split": "rollout", "samples": rows}, ensure_ascii=False, indent=1)
    write_atomically(folder.samples / TABLE, table)
