"""A step trained again on the groups that the run kept of it, from the newest checkpoint before it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from learner import checkpoint
from learner.engine import LearnerEngine
from policy.tokens import TokenLayout
from transport.errors import WireError
from transport.group_files import GroupFiles
from transport.trajectory import TrajectoryGroup

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
        WireError: a kept file is damaged, or holds what this policy cannot have drawn.
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
        engine.step(_groups(files, one, engine.layout), reward_weights)
    metrics = engine.step(_groups(files, step, engine.layout), reward_weights)
    return Replayed(step, start, str(path) if path else None, between, metrics)


def _groups(files: GroupFiles, step: int, layout: TokenLayout) -> list[TrajectoryGroup]:
    """The kept groups of a step, after a look at whether their ids are the policy's."""
    groups = files.read(step)
    for group in groups:
        for member in group.members:
            image, semantic = member.image, member.semantic
            texts = [image.prompt_ids] + ([semantic.prompt_ids, semantic.token_ids] if semantic else [])
            fits = len(image.token_ids) == layout.image_tokens and _within(image.token_ids, layout.image_vocab)
            fits &= all(len(prompt) and _within(prompt, layout.text_vocab) for prompt in texts[:2])
            fits &= all(_within(text, layout.text_vocab) for text in texts[2:])
            if not fits:
                raise WireError(
                    f"group {group.index} of step {step} is none that this policy draws: its token ids are not of "
                    f"{layout.text_vocab} for text and {layout.image_vocab} for pictures of {layout.image_tokens}; "
                    "policy.checkpoint has to be the run's own"
                )
    return groups


def _within(ids: Tensor, size: int) -> bool:
    return not len(ids) or int(ids.max()) < size
