"""Folders of finished and unfinished runs, written without running anything, for the reports' tests."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

from PIL import Image

from recipe.config import load_config
from recipe.run_folder import RunFolder, append_json, write_atomically

PROMPTS = {"a red <b>": "counting", "two blue stars": "single"}


def picture(side: int, shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 90, 120)).save(out, "PNG")
    return out.getvalue()


def make_run(
    path: Path, seed: int = 0, *overrides: str, steps: int = 20, of: int = 20, side: int = 16, rich: bool = True
) -> RunFolder:
    """A run's folder after `steps` of its `of` steps; `rich` with the metrics that older runs don't have."""
    folder = RunFolder(path)
    wanted = [f"folder={path}", f"seed={seed}", f"steps={of}", *overrides]
    folder.create(load_config("deploy/runs/shapes.yaml", wanted), resume=False, fresh=False)
    for step in range(1, steps + 1):
        row = {
            "step": step, "seconds/step": 2.0, "seconds/wait_for_rollout": 0.5, "pictures_per_s": 32.0 + seed,
            "reward/detector": 0.4 + 0.02 * step + 0.01 * seed, "kl": math.nan if step == 3 else 0.01 * step,
            "cot/tokens": 6.0, "seconds/backward": 1.0, "seconds/train": 1.2, "seconds/publish": 0.1,
        }  # fmt: skip
        if rich:
            row |= {"reward_by_task/detector/spatial": 0.5, "stage_seconds/image": 0.7}
            if step % 2:
                row["reward_by_task/detector/numeracy"] = 0.25
        append_json(folder.metrics, row)
    for step in range(0, steps + 1, 5):
        score(folder, "dev", step, side, 0.5 + 0.01 * step)
    score(folder, "test", 0, side, 0.4 + 0.1 * seed)
    if steps == of:
        score(folder, "test", steps, side, 0.8 + 0.1 * seed)
        summary = {"seconds": 2.0 * steps + 30, "resumed_at": 0}
        write_atomically(folder.summary, json.dumps(summary))
    return folder


def score(folder: RunFolder, split: str, step: int, side: int, value: float) -> None:
    append_json(folder.held_out, {"step": step, "split": split, "scores": {"counting": value, "all": value}})
    samples = []
    for number, (prompt, family) in enumerate(PROMPTS.items()):
        name = f"{split}-{step:06d}-{number}.png"
        (folder.samples / name).write_bytes(picture(side, step * 9))
        cot = f"red circle {'left' if step < 10 else 'right <i>'}" + " and so on" * 9 * number
        rewards = {"detector": 1.0, "strict": None if number else 0.25}
        samples.append({"prompt": prompt, "family": family, "cot": cot, "rewards": rewards, "png": name})
    text = json.dumps({"step": step, "split": split, "samples": samples})
    write_atomically(folder.samples / f"{split}-{step:06d}.json", text)
