"""Facts about a run's training for its report: the number of prompts per family, and what each reward judges."""

from __future__ import annotations

import json
from collections import Counter
from inspect import cleandoc

from policy.prompts import load_prompts
from recipe.check import prompt_files
from recipe.config import RunConfig
from recipe.run_folder import RunFolder, write_atomically
from rewards.base import Reward, check_reward


def write_training_facts(folder: RunFolder, config: RunConfig) -> None:
    """Write `training.json`: prompts by family for "train", "dev" and "test", and a sentence or two per reward.

    Raises:
        PromptFileError: a prompt file cannot be used.
        RewardConfigError: a reward cannot be made.
    """
    prompts = {
        key.partition(".")[2]: dict(
            Counter(
                record.group
                for record in load_prompts(path, config.prompts.exclude if key == "prompts.train" else ())
            )
        )
        for key, path in prompt_files(config)
    }
    rewards = {
        service.name: meaning(check_reward(service, config.rewards.scoring)) for service in config.rewards.services
    }
    text = json.dumps({"prompts": prompts, "rewards": rewards}, ensure_ascii=False, indent=1)
    write_atomically(folder.training, text)


def meaning(reward: type[Reward]) -> str:
    """What a reward judges: the first paragraph of its class's docstring, or "" if the class has no docstring.

    If that paragraph ends in a colon, the next paragraph belongs to it.
    """
    docs = (one.__doc__ for one in reward.__mro__ if issubclass(one, Reward) and one is not Reward)
    first, *more = cleandoc(next(filter(None, docs), "")).split("\n\n")
    return " ".join(" ".join([first, *more[: first.endswith(":")]]).split())
