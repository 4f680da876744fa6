"""What docs/rewards.md shows is what there is."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from paths import ROOT

from policy.prompts import PromptRecord
from rewards.base import check_reward
from rewards.config import RewardsConfig

PAGE = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^(?: {4}.*)?\n)+", PAGE, flags=re.MULTILINE)]


def block(start: str) -> str:
    return next(text.strip() for text in BLOCKS if text.strip().startswith(start))


def test_the_run_config_s_rewards_exist_and_take_those_options() -> None:
    config = RewardsConfig.model_validate(yaml.safe_load(block("rewards:"))["rewards"])
    assert len(config.services) == 5
    for service in config.services:
        module, name = service.target.split(":")
        found = vars(__import__(module, fromlist=[name]))[name]
        inspect.signature(found).bind(**service.options)


def test_the_options_in_the_table_are_all_there_are() -> None:
    rows = re.findall(r"^\| `(rewards\.models\.\w+):(\w+)` \|[^|]*\| ([^|]*) \|", PAGE, flags=re.MULTILINE)
    assert len(rows) == 6
    for module, name, options in rows:
        found = vars(__import__(module, fromlist=[name]))[name]
        takes = set(inspect.signature(found).parameters) - {"scoring"}
        assert takes == set(re.findall(r"`(\w+)`", options)), name


def test_the_example_of_one_s_own_works(tmp_path: Path, monkeypatch: Any) -> None:
    code, _, run = block("# my_rewards.py").partition("# in the run config")
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    (service,) = RewardsConfig.model_validate({"services": yaml.safe_load(run)}).services
    reward = check_reward(service)(**service.options)
    counted = PromptRecord(prompt="two dogs", task_type="numeracy", nouns=("dog",))
    records = [counted, counted.model_copy(update={"task_type": "object"})]
    assert reward.score([np.full((2, 2, 3), 255, np.uint8)] * 2, records) == [None, 2.0]
