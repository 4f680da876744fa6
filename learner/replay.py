"""A step trained again on the groups that the run kept of it, from the newest checkpoint before it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from learner import checkpoint
from learner.engine import LearnerEngine
from transport.group_files import GroupFiles

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A step that was trained again, and the learner's way to it.

    `start` is the step of the checkpoint at `path`; without a checkpoint the policy's own weights (`path` None,
    `start` 0). `between` are the steps that were trained on the way. If they do not lead up to the step, its weights
    differ from those in the run (`exact` false).
    """

    step: int
    start: int
    path: str | None
    between: tuple[int, ...]
    metrics: dict[str, float]

    @property
    def version(self) -> int:
        """The weight version at the beginning of the step."""
        return self.start + len(self.between)

    @property
    def exact(self) -> bool:
        """Whether these are the weights that the run's own step began with."""
        return self.version == self.step - 1


def replay(
    engine: LearnerEngine,
    reward_weights: Mapping[str, float],
    checkpoints: str | Path,
    kept: str | Path,
    step: int,
    groups: int,
) -> Replayed:
    """Train the groups in the folder `kept` of `step`, `groups` of them, with an engine as it was made; a collective.

    If the newest earlier checkpoint is older than the previous step, the steps between are trained first, provided
    that the groups of all of them are kept. Nothing is written.

    Raises:
        CheckpointError: the checkpoint does not fit the policy, the number of ranks or the ZeRO stage.
        WireError: a kept file is damaged.
    """
    files = GroupFiles(kept)
    path = checkpoint.newest(checkpoints, at_most=step - 1)
    if path:
        checkpoint.load(engine, path)
    start = engine.steps
    between = tuple(range(start + 1, step))
    if any(files.count(one) < groups for one in between):
        between = ()
    for one in between:
        log.info("step %d, on the way", one)
        engine.step(files.read(one), reward_weights)
    metrics = engine.step(files.read(step), reward_weights)
    return Replayed(step, start, str(path) if path else None, between, metrics)
