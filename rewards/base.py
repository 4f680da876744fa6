"""The interface of a reward, and loading by import path.

Your own reward is a class in any module on the Python path::

    # my_rewards.py
    import numpy as np
    from policy.prompts import PromptRecord
    from rewards.base import Reward

    class Brightness(Reward):
        '''Mean brightness; missing for prompts that are about counts.'''

        def __init__(self, gain: float = 1.0) -> None:
            self.gain = gain

        def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
            return [
                None if prompt.task_type == "numeracy" else self.gain * float(picture.mean()) / 255
                for picture, prompt in zip(pictures, prompts, strict=True)
            ]

and these lines in the run config::

    rewards:
      services:
        - {name: brightness, target: "my_rewards:Brightness", options: {gain: 2.0}, weight: 0.5}
"""

from __future__ import annotations

import importlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from policy.prompts import PromptRecord
from rewards.config import RewardConfig, Scoring


class Reward(ABC):
    """A reward model. Each replica creates one, in its process, from the config's `options`."""

    @abstractmethod
    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        """Score each picture (uint8 [H, W, 3], read-only, sizes may differ) for its prompt record.

        The batch has at most `batch_size` pictures, of one prompt or several. A score must not depend on the other
        pictures of the batch. None means that this reward does not apply. Higher is better, on any scale. Called from
        one thread at a time. After an exception the call is retried; then the reward is missing for the whole group.
        """

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Check options without loading a model, e.g. that a checkpoint exists. Raises ValueError or OSError.

        The driver calls this before anything starts: keep it quick, and import model libraries elsewhere.
        """
        return

    @classmethod
    def parameters(cls, options: Mapping[str, Any]) -> int | None:
        """Number of the model's parameters, counted without loading it; None without a model."""
        return None


class RewardConfigError(ValueError):
    """A reward that cannot be created as configured; names the service, the key, the module and the class."""


class RewardFailure(RuntimeError):
    """A reward that could not score a group: its `name`, `why`, and after how many `seconds`."""

    def __init__(self, name: str, why: str, seconds: float) -> None:
        super().__init__(name, why, seconds)
        self.name, self.why, self.seconds = name, why, seconds

    def __str__(self) -> str:
        return f"reward {self.name!r} failed after {self.seconds:.1f} s: {self.why}"


class InvalidScores(ValueError):
    """A reward returned something else than one finite number or None for each picture."""


def check_reward(config: RewardConfig, scoring: Scoring = "paper") -> type[Reward]:
    """Import the class and check its options, without creating an instance.

    `scoring` goes to a class that takes an argument of that name, unless the options set it.

    Raises:
        RewardConfigError: the import fails, the class is no Reward, or does not accept the options.
    """
    module_name, class_name = config.target.split(":")
    where = f"reward {config.name!r}: target: "
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise RewardConfigError(f"{where}cannot import module {module_name!r} ({why})") from error
    found = vars(module).get(class_name)
    if found is None:
        raise RewardConfigError(f"{where}module {module_name!r} has no class {class_name!r}")
    if not (inspect.isclass(found) and issubclass(found, Reward)) or inspect.isabstract(found):
        raise RewardConfigError(f"{where}{config.target} is not a rewards.base.Reward with a score method")
    try:
        options = _options(found, config, scoring)
        inspect.signature(found).bind(**options)
        found.check(options)
    except (TypeError, ValueError, OSError) as error:
        raise RewardConfigError(f"reward {config.name!r}: options: {config.target}: {error}") from error
    return found


def load_reward(config: RewardConfig, scoring: Scoring = "paper") -> Reward:
    """Create the reward, with its model; `scoring` as in `check_reward`.

    Raises:
        RewardConfigError: see `check_reward`; errors of the class itself come through unchanged.
    """
    reward = check_reward(config, scoring)
    return reward(**_options(reward, config, scoring))


def _options(reward: type[Reward], config: RewardConfig, scoring: Scoring) -> dict[str, Any]:
    takes_scoring = "scoring" in inspect.signature(reward).parameters
    return {"scoring": scoring, **config.options} if takes_scoring else config.options


def checked_scores(scores: Sequence[Any], pictures: int) -> list[float | None]:
    """One finite float or None per picture.

    Raises:
        InvalidScores: another number of scores, a score that is no number, NaN or infinite.
    """
    if len(scores) != pictures:
        raise InvalidScores(f"returned {len(scores)} scores for {pictures} pictures")
    return [None if score is None else _finite(score, index) for index, score in enumerate(scores)]


def _finite(score: Any, index: int) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError) as error:
        raise InvalidScores(f"score {index} is {score!r:.60}, not a number") from error
    if not math.isfinite(number):
        raise InvalidScores(f"score {index} is {number}")
    return number
