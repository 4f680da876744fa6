"""A config without secrets, its dotted keys, and what a run trains on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from policy.prompts import PromptRecord
from recipe.config import dump_config, load_config
from recipe.public_config import as_yaml, flat_keys, public_config, public_override, without_secrets
from recipe.run_folder import RunFolder
from recipe.training_facts import meaning, write_training_facts
from rewards.base import Reward
from rewards.models.clip import ClipCosine
from shapes.rewards import Tidiness

SECRETS = (
    "openaiApiKey", "OPENAIAPIKey", "accessToken", "auth", "secrets", "pwd", "passphrase", "bearer", "openai_key",
    "api_keys", "client.secret", "tokens", "cookie", "db_pass", "passwordHash", "X-Auth-Token",
)  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "shown"),
    [
        ({"url": "rediss://me:hu/sh@host:1/0"}, {"url": "rediss://***@host:1/0"}),
        ({"url": "rediss://me:hu@sh@host:1/0"}, {"url": "rediss://***@host:1/0"}),
        ({"url": "redis://:1/hu?s#h@host"}, {"url": "redis://***@host"}),
        ({"url": "redis://h/0?password=hush&db=1"}, {"url": "redis://h/0?password=***&db=***"}),
        ({"urls": [{"a": "see http://me:hush@host now"}]}, {"urls": [{"a": "see http://***@host now"}]}),
        (
            {"a": "https://hush@host/b", "b": "https://me:hu/sh@h", "c": "https://h:1/@me?a=1"},
            {"a": "https://***@host/b", "b": "https://***@h", "c": "https://h:1/@me?a=1"},
        ),
        (
            {"a": "https://h/x?api_key=hush&n=5&sig=hush", "b": "http://h?x=1;accessToken=hush#key=hush"},
            {"a": "https://h/x?api_key=***&n=5&sig=***", "b": "http://h?x=1;accessToken=***#key=***"},
        ),
        ({"headers": {"Authorization": "Bearer hush"}}, {"headers": {"Authorization": "***"}}),
        (
            {"headers": ["Authorization: Basic hush", "a Bearer hush.hush"]},
            {"headers": ["Authorization: ***", "a Bearer ***"]},
        ),
        ({key: ["hush"] for key in SECRETS}, dict.fromkeys(SECRETS, "***")),
        ({"author": "me", "token_ids": [1], "key": "colour", "passes": 3, "basic": "basic shapes", "pin": 0},) * 2,
        ({"openai_api_key": "hush", "token": {"a": "hush"}}, {"openai_api_key": "***", "token": "***"}),
        ({"Password": "hush\nhush", "secret-key": ["hush"]}, {"Password": "***", "secret-key": "***"}),
        ({"api_key": None, "max_tokens": 7, "tokens": 2}, {"api_key": None, "max_tokens": 7, "tokens": 2}),
    ],
)
def test_no_secrets(tree: dict[str, object], shown: dict[str, object]) -> None:
    assert without_secrets(tree) == shown


def test_an_override_without_its_secret() -> None:
    assert public_override("learner.optimizer.lr=1e-5") == "learner.optimizer.lr=1e-5"
    assert public_override("rewards.services.0.options.apiKey=hush") == "rewards.services.0.options.apiKey=***"
    assert public_override("rewards.services.0.options={url: 'http://hush@h'}") == "rewards.services.0.options=***"


def test_a_whole_config_stays_as_it_is() -> None:
    text = dump_config(load_config("deploy/runs/shapes.yaml"))
    assert as_yaml(public_config(text)) == text
    with pytest.raises(ValueError, match="no mapping"):
        public_config("[1, 2]")
    with pytest.raises(yaml.YAMLError):
        public_config("[1, 2")


def test_dotted_keys() -> None:
    config = load_config("deploy/runs/shapes.yaml", ["buffer.url=redis://me:hush@host", "metrics.wandb={project: a}"])
    flat = flat_keys(public_config(dump_config(config)))
    assert flat["rewards.services.detector.weight"] == 1.0 and flat["learner.optimizer.lr"] == 1.5e-4
    assert flat["steps"] == 100 and flat["metrics.wandb.project"] == "a" and flat["buffer.url"] == "redis://***@host"
    assert flat["prompts.exclude"] == [] and flat["rewards.services.strict.options"] == {}
    assert not any(isinstance(value, dict) and value for value in flat.values()) and "hush" not in str(flat)


def test_what_a_run_trains_on(tmp_path: Path) -> None:
    exclude = tmp_path / "exclude.txt"
    first = json.loads(Path("shapes/data/train.jsonl").read_text().splitlines()[0])
    exclude.write_text(first["prompt"])
    config = load_config("deploy/runs/shapes.yaml", [f"folder={tmp_path}", f"prompts.exclude=[{exclude}]"])
    folder = RunFolder(tmp_path)
    write_training_facts(folder, config)
    facts = json.loads(folder.training.read_text())
    rows = {
        name: len(Path(f"shapes/data/{name}.jsonl").read_text().splitlines()) for name in ("train", "dev", "test")
    }
    assert {name: sum(families.values()) for name, families in facts["prompts"].items()} == rows | {
        "train": rows["train"] - 1
    }
    assert facts["rewards"]["strict"].startswith("1 when the picture shows the right things")


def test_what_a_reward_looks_at() -> None:
    class Untold(Reward):
        def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
            return [0.0] * len(pictures)

    assert meaning(Untold) == ""
    assert meaning(type("Mine", (ClipCosine,), {})).startswith("Cosine similarity in [-1, 1]")  # its parent's
    assert "three shares: pixels that are background" in meaning(Tidiness)
