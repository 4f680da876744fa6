"""Pictures a second of every reward, by batch size, beside the pictures one by one as T2I-R1's script scores them.

At `tiny`: the shapes rewards, and the real ones as random models of a few hundred kilobytes, which shows what goes
on around a model. From 100m up: HPS and Grounding DINO at their true sizes with random weights. GIT-large and the 7B
judge are left out there.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loop import RUN
from benchmarks.report import Report, Value
from benchmarks.timing import alternate
from cluster.config import load_config
from policy.prompts import PromptRecord, load_prompts
from rewards.base import Reward
from rewards.tiny import GAIN, HPS_FILE, open_clip_tensors, write_tiny_grounding_dino, write_tiny_rewards
from rewards.tiny_tokenizers import clip_tokenizer

GROUP = 8
_CLASSES = {
    "hps": "rewards.hps:Hps",
    "grounding_dino": "rewards.grounding_dino:GroundingDino",
    "git_vqa": "rewards.git_vqa:GitVqa",
    "orm": "rewards.orm:Orm",
}


def run(report: Report) -> None:
    """Measure every reward."""
    batches, side = ((8, 32, 64), 384) if report.scale == "tiny" else ((8,), 384)
    repeats = report.repeats if report.scale == "tiny" else 1
    rows: list[dict[str, Value]] = []
    with tempfile.TemporaryDirectory(prefix="bicot-rewards-") as folder:
        for name, reward, size in _rewards(report.scale, Path(folder), side):
            rows += measure(name, reward, size, batches, repeats, report.device)
    report.table(
        "Rewards, by pictures in one call",
        rows,
        f"Groups of {GROUP} pictures of a prompt. x one by one: over the same pictures in calls of one.",
    )


def measure(
    name: str, reward: Reward, side: int, batches: Sequence[int], repeats: int, device: str = "cpu"
) -> list[dict[str, Value]]:
    """A row for each batch size; every case scores the largest batch's pictures."""
    count = max(batches)
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]
    prompts = _prompts(count)

    def calls_of(size: int) -> Callable[[], object]:
        def call() -> list[float | None]:
            scores: list[float | None] = []
            for at in range(0, count, size):
                scores += reward.score(pictures[at : at + size], prompts[at : at + size])
            return scores

        return call

    cases = {size: calls_of(size) for size in (1, *batches)}
    seconds = alternate({str(size): case for size, case in cases.items()}, repeats, device)
    return [
        {
            "case": f"{name}, {size}",
            "pictures/s": count / seconds[str(size)],
            "x one by one": seconds["1"] / seconds[str(size)],
        }
        for size in cases
    ]


def _prompts(count: int) -> list[PromptRecord]:
    """Prompts of the shapes world, which every reward has something to say to; a group of pictures has one."""
    records = load_prompts(load_config(RUN).prompts.train)
    asked = [record for record in records if record.attr_nouns and record.task_type not in ("spatial", "numeracy")]
    return [asked[number // GROUP] for number in range(count)]


def _rewards(scale: str, folder: Path, side: int) -> list[tuple[str, Reward, int]]:
    """Rewards by name, and the side of the pictures that each looks at, in pixels."""
    if scale != "tiny":
        options = {"hps": _hps(folder / "hps"), "grounding_dino": _grounding_dino(folder / "dino")}
        return [(name, _make(_CLASSES[name], options[name]), side) for name in options]
    made = [(one.name, _make(one.target, one.options), 48) for one in load_config(RUN).rewards.services]
    real = write_tiny_rewards(folder)
    return made + [(f"{name}, tiny", _make(_CLASSES[name], real[name]), side) for name in _CLASSES]


def _make(target: str, options: dict[str, Any]) -> Reward:
    module, name = target.split(":")
    reward: Reward = getattr(importlib.import_module(module), name)(**options)
    return reward


def _hps(folder: Path) -> dict[str, Any]:
    """ViT-H-14 of 224 pixels, a billion parameters, with a small vocabulary."""
    folder.mkdir()
    tokenizer, generator = clip_tokenizer(), torch.Generator().manual_seed(0)
    tokenizer.save_pretrained(folder)

    def random(*shape: int) -> torch.Tensor:
        inputs = max(1, torch.Size(shape[1:]).numel())
        return torch.randn(shape, generator=generator) * GAIN / inputs**0.5

    tensors = open_clip_tensors(
        random, len(tokenizer), 1024, 1280, layers=24, embed=1024, vision_layers=32, patch=14, patches=256
    )
    torch.save({"state_dict": dict(tensors), "epoch": 0}, folder / HPS_FILE)
    return {"checkpoint": str(folder / HPS_FILE), "tokenizer": str(folder)}


def _grounding_dino(folder: Path) -> dict[str, Any]:
    """Grounding DINO with Swin-T, pictures of 800 pixels."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection
    from transformers import GroundingDinoImageProcessorPil as Processor

    write_tiny_grounding_dino(folder)  # for its tokenizer
    GroundingDinoForObjectDetection(GroundingDinoConfig()).eval().save_pretrained(folder)
    Processor(size={"shortest_edge": 800, "longest_edge": 1333}).save_pretrained(folder)
    return {"checkpoint": str(folder)}
