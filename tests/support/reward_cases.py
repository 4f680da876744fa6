"""Tiny reward models that several tests share, made once a session, and pictures and prompts to score."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policy.prompts import PromptRecord
from rewards.base import load_reward
from rewards.config import RewardConfig, Scoring
from rewards.models.tiny import write_tiny_rewards

TARGETS = {"hps": "Hps", "grounding_dino": "GroundingDino", "git_vqa": "GitVqa", "orm": "Orm"}
TWO_DOGS = {"prompt": "two dogs", "task_type": "numeracy", "nouns": ["dog"]}
PROMPTS = [
    PromptRecord(prompt="a red circle", task_type="object", nouns=("circle",)),
    PromptRecord(
        prompt="a red circle and a blue square", task_type="color", nouns=("circle", "square"),
        attr_nouns=("red circle", "blue square"),
    ),
    PromptRecord(prompt="an old wooden chair by a dog", task_type="non", nouns=("old wooden chair", "dog")),
    PromptRecord.model_validate(TWO_DOGS | {"numeracy_info": [{"obj_name": "dog", "num": 2}]}),
    PromptRecord(prompt="a green heart", task_type="shape", nouns=("heart",), attr_nouns=("green heart",)),
]  # fmt: skip

_FOLDER = tempfile.TemporaryDirectory(prefix="tiny_rewards")


@functools.cache
def tiny() -> dict[str, dict[str, Any]]:
    """Options of each reward, by name; do not change the checkpoints."""
    options: dict[str, dict[str, Any]] = {**write_tiny_rewards(_FOLDER.name, seed=0)}
    options["orm"]["dtype"] = "float32"
    return options


def config(name: str, options: dict[str, Any]) -> RewardConfig:
    """A service of that reward."""
    return RewardConfig(name=name, target=f"rewards.models.{name}:{TARGETS[name]}", options=options)


@functools.cache
def load(name: str, scoring: Scoring = "paper", **options: Any) -> Any:
    """A tiny reward, loaded once; do not change it."""
    return load_reward(config(name, tiny()[name] | options), scoring)


def on_meta(*shape: int) -> torch.Tensor:
    """A tensor without memory, for sizes of released models."""
    return torch.empty(shape, device="meta")


def _pictures(*shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


MIXED = _pictures((48, 48), (48, 48), (40, 56), (64, 32), (40, 56))


def broken(tmp_path: Path, name: str, what: str) -> dict[str, Any]:
    """Options whose checkpoint is a copy with one thing wrong."""
    source = Path(tiny()[name]["checkpoint"])
    if name == "hps":
        (tmp_path / "x.pt").write_bytes(source.read_bytes()[:1000] if what == "torn" else b"")
        if what == "keys":
            torch.save({"model": {}}, tmp_path / "x.pt")
        return tiny()[name] | {"checkpoint": str(tmp_path / ("absent.pt" if what == "absent" else "x.pt"))}
    for file in source.iterdir():
        if what != "weights" or file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "config.json"
    if what == "config":
        path.write_text('{"model_type": "bert"}')
    return tiny()[name] | {"checkpoint": str(tmp_path)}
