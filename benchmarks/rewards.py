"""Pictures a second of every reward, by batch size, beside the pictures one by one as T2I-R1's script scores them.

At `tiny`: the shapes rewards, and the real ones as random models of a few hundred kilobytes, which shows the cost
around a model. From 100m up: HPS, Grounding DINO and GIT-large at their true sizes with random weights and small
vocabularies; the 7B judge, which has Janus' own language model's size, is left out. Beside them, at their true sizes
at every scale, the pixels that each model is shown.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.loop import RUN
from benchmarks.report import Report, Value
from benchmarks.sampler import matmul_flops
from benchmarks.timing import alternate
from policy.prompts import PromptRecord, load_prompts
from recipe.config import load_config
from rewards.base import Reward
from rewards.models.pixels import PictureProcessor
from rewards.models.tiny import (
    GAIN,
    HPS_FILE,
    open_clip_tensors,
    write_tiny_git,
    write_tiny_grounding_dino,
    write_tiny_rewards,
)
from rewards.models.tiny_tokenizers import clip_tokenizer
from shapes.renderer import render
from shapes.world import asked, place

GROUP = 8
SIDE = 384  # pixels of a Janus-Pro picture
_CLASSES = {
    "hps": "rewards.models.hps:Hps",
    "grounding_dino": "rewards.models.grounding_dino:GroundingDino",
    "git_vqa": "rewards.models.git_vqa:GitVqa",
    "orm": "rewards.models.orm:Orm",
}


def run(report: Report) -> None:
    """Measure every reward, and what makes their pixels."""
    tiny = report.scale == "tiny"
    true_sizes = (8,) if report.device == "cuda" else (4,)
    batches, repeats = ((8, 32, 64), report.repeats) if tiny else (true_sizes, 1)
    prompts = _prompts(max(batches))
    rows: list[dict[str, Value]] = []
    with tempfile.TemporaryDirectory(prefix="bicot-rewards-") as folder:
        for name, reward, pictures in _rewards(report.scale, Path(folder), prompts):
            flops_s = None if tiny else matmul_flops(2048, 1024, 4096, torch.float32, report.device)
            rows += measure(name, reward, pictures, prompts, batches, repeats, report.device, flops_s)
    limit = "" if tiny else " Limit: a picture's multiplications at the rate of a large one of 1024 x 4096."
    report.table(
        "Rewards, by pictures in one call",
        rows,
        f"{GROUP} pictures of a prompt, then the next. x one by one: over the same pictures in calls of one.{limit}",
    )
    report.table(
        f"Pixels from {SIDE}x{SIDE} bytes, by what a checkpoint's processor makes of them",
        [_pixels(name, processor, report) for name, processor in _processors().items()],
        "x processor: over transformers' own, which gives the same to the bit. On one core.",
    )


def measure(
    name: str,
    reward: Reward,
    pictures: Sequence[np.ndarray],
    prompts: Sequence[PromptRecord],
    batches: Sequence[int],
    repeats: int,
    device: str = "cpu",
    flops_s: float | None = None,
) -> list[dict[str, Value]]:
    """A row for each batch size; every case scores all pictures.

    With `flops_s`, of which the device makes that many a second, also the share of the limit that they set.
    """
    sizes = (1, *batches)
    cases = {str(size): calls_of(size, reward, pictures, prompts) for size in sizes}
    seconds = alternate(cases, repeats, device, warm_up=1 if flops_s is None else 0)
    rows: list[dict[str, Value]] = [
        {
            "case": f"{name}, {size}",
            "pictures/s": len(pictures) / seconds[str(size)],
            "x one by one": seconds["1"] / seconds[str(size)],
        }
        for size in sizes
    ]
    if flops_s is None:
        return rows
    with FlopCounterMode(display=False) as counter:
        reward.score(list(pictures[:1]), list(prompts[:1]))
    flops = float(counter.get_total_flops())
    return [row | {"GFLOP/picture": flops / 1e9, "share of the limit": _rate(row) * flops / flops_s} for row in rows]


def calls_of(
    size: int, reward: Reward, pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]
) -> Callable[[], list[float | None]]:
    """Scores of all pictures, `size` in a call."""

    def call() -> list[float | None]:
        scores: list[float | None] = []
        for at in range(0, len(pictures), size):
            scores += reward.score(list(pictures[at : at + size]), list(prompts[at : at + size]))
        return scores

    return call


def _rate(row: dict[str, Value]) -> float:
    rate = row["pictures/s"]
    assert isinstance(rate, float)
    return rate


def _pixels(name: str, processor: Any, report: Report) -> dict[str, Value]:
    pictures, ours = noise(GROUP), PictureProcessor(processor)
    cases: dict[str, Callable[[], object]] = {
        "ours": lambda: [ours([picture]) for picture in pictures],
        "processor": lambda: [processor([picture], return_tensors="pt") for picture in pictures],
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = alternate(cases, max(3, report.repeats))
    finally:
        torch.set_num_threads(threads)
    return {
        "case": name,
        "pictures/s": GROUP / seconds["ours"],
        "processor's pictures/s": GROUP / seconds["processor"],
        "x processor": seconds["processor"] / seconds["ours"],
    }


def _processors() -> dict[str, Any]:
    from transformers import CLIPImageProcessorPil, GroundingDinoImageProcessorPil, SiglipImageProcessorPil

    return {
        "grounding_dino, 800": GroundingDinoImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333}),
        "git_vqa, 420": CLIPImageProcessorPil(size={"shortest_edge": 420}, crop_size={"height": 420, "width": 420}),
        "orm, 384": SiglipImageProcessorPil(size={"height": 384, "width": 384}),
    }


def noise(count: int, side: int = SIDE) -> list[np.ndarray]:
    """Random pictures, uint8 [side, side, 3]."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def _prompts(count: int) -> list[PromptRecord]:
    """Prompts of the shapes world, which every reward has something to say to; a group of pictures has one."""
    records = load_prompts(load_config(RUN).prompts.train)
    told = [record for record in records if record.attr_nouns and record.task_type not in ("spatial", "numeracy")]
    return [told[number // GROUP] for number in range(count)]


def _rewards(scale: str, folder: Path, prompts: Sequence[PromptRecord]) -> list[tuple[str, Reward, list[np.ndarray]]]:
    """Rewards by name, and a picture for each prompt to score: of the shapes world what was asked, else noise."""
    pictures = noise(len(prompts))
    if scale != "tiny":
        options = {
            "hps": _hps(folder / "hps"),
            "grounding_dino": grounding_dino(folder / "dino"),
            "git_vqa": _git(folder / "git"),
        }
        return [(name, _make(_CLASSES[name], options[name]), pictures) for name in options]
    random = Random(0)
    scenes = [render(place(asked(record), random)) for record in prompts]
    made = [(one.name, _make(one.target, one.options), scenes) for one in load_config(RUN).rewards.services]
    real = write_tiny_rewards(folder)
    return made + [(f"{name}, tiny", _make(_CLASSES[name], real[name]), pictures) for name in _CLASSES]


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


def grounding_dino(folder: Path) -> dict[str, Any]:
    """Grounding DINO with Swin-T, pictures of 800 pixels."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection
    from transformers import GroundingDinoImageProcessorPil as Processor

    write_tiny_grounding_dino(folder)  # for its tokenizer
    GroundingDinoForObjectDetection(GroundingDinoConfig()).eval().save_pretrained(folder)
    Processor(size={"shortest_edge": 800, "longest_edge": 1333}).save_pretrained(folder)
    return {"checkpoint": str(folder)}


def _git(folder: Path) -> dict[str, Any]:
    """GIT-large as tuned on VQAv2: a ViT-L-14 of 420 pixels and a decoder of 6 layers."""
    from transformers import CLIPImageProcessorPil, GitConfig, GitForCausalLM

    write_tiny_git(folder)  # for its tokenizer
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = GitConfig(vision_config={**vision, "image_size": 420, "patch_size": 14})
    GitForCausalLM(config).eval().save_pretrained(folder)
    square = {"height": 420, "width": 420}
    CLIPImageProcessorPil(size={"shortest_edge": 420}, crop_size=square).save_pretrained(folder)
    return {"checkpoint": str(folder)}
