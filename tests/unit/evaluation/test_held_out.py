"""Held-out scoring: the same seeds every time, means by family, and the samples that it keeps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.held_out import HeldOut, HeldOutScores
from policy.pictures import to_png
from policy.prompts import PromptRecord
from policy.seeds import member_seed
from recipe.errors import StageError
from recipe.run_folder import RunFolder
from transport.trajectory import ImageSegment, Member

PROMPTS = [
    PromptRecord(prompt=name, task_type="object", nouns=(name,), family=family)
    for name, family in [("a", "zoo"), ("b", "zoo"), ("c", "zoo"), ("d", "art"), ("e", None)]
]
SCORES = {"a": [1.0, 0.0], "b": [0.5, None], "c": [None, None], "d": [0.25, 0.75], "e": [0.0, 0.0]}


class Drawn:
    """Draws grey pictures whose scores are known, and notes what it was asked."""

    def __init__(self, scores: dict[str, list[float | None]]) -> None:
        self.seed, self.scores = 11, scores
        self.asked: dict[str, tuple[list[int], str, bool]] = {}
        self.under_way = self.most = 0

    async def members(
        self, prompt: PromptRecord, seeds: Sequence[int], work: str, keep_pictures: bool = False
    ) -> tuple[Member, ...]:
        self.asked[prompt.prompt] = (list(seeds), work, keep_pictures)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        none = torch.zeros(0)
        image = ImageSegment(none, none, none, none, 1.0, 1.0, 0)
        png = to_png(np.full((2, 2, 3), ord(prompt.prompt), dtype=np.uint8)) if keep_pictures else None
        return tuple(
            Member(seed, None, image, f"plan {number}", {"judge": score, "other": 2.0 * number}, png)
            for number, (seed, score) in enumerate(zip(seeds, self.scores[prompt.prompt], strict=True))
        )


def score(
    painter: Drawn, folder: Path, samples: int = 3, together: int = 2
) -> tuple[HeldOutScores, list[tuple[int, np.ndarray, list[str]]]]:
    shown: list[tuple[int, np.ndarray, list[str]]] = []
    run = RunFolder(folder)
    run.samples.mkdir(parents=True, exist_ok=True)
    held_out = HeldOut("dev", PROMPTS, 2, "judge", samples, together)
    return asyncio.run(held_out.score(painter, 7, run, lambda *what: shown.append(what))), shown


def test_means_are_over_the_pictures_that_have_a_score(tmp_path: Path) -> None:
    scores, _ = score(Drawn(SCORES), tmp_path)
    assert scores.by_family == {"art": 0.5, "object": 0.0, "zoo": 0.5, "all": pytest.approx(2.5 / 7)}
    assert list(scores.by_family) == ["art", "object", "zoo", "all"]
    assert scores.rewards == {"judge": pytest.approx(2.5 / 7), "other": 1.0}
    assert scores.pictures == {"art": 2, "object": 2, "zoo": 3, "all": 7}


def test_seeds_are_those_of_no_visit_in_training(tmp_path: Path) -> None:
    painter = Drawn(SCORES)
    score(painter, tmp_path)
    for prompt in PROMPTS:
        seeds, work, _ = painter.asked[prompt.prompt]
        assert seeds == [member_seed(11, prompt.id, -1, number) for number in (0, 1)]
        assert work == f"dev/{prompt.id}"
    assert painter.most == 2


def test_samples_are_taken_from_every_family_in_turn(tmp_path: Path) -> None:
    painter = Drawn(SCORES)
    _, shown = score(painter, tmp_path, samples=4)
    assert {name for name, (_, _, kept) in painter.asked.items() if kept} == set("adeb")
    kept = json.loads((tmp_path / "samples/dev-000007.json").read_text(encoding="utf-8"))
    assert (kept["step"], kept["split"]) == (7, "dev")
    assert [(row["prompt"], row["family"], row["cot"]) for row in kept["samples"]] == [
        ("a", "zoo", "plan 0"), ("b", "zoo", "plan 0"), ("d", "art", "plan 0"), ("e", "object", "plan 0")
    ]  # fmt: skip
    assert kept["samples"][2]["rewards"] == {"judge": 0.25, "other": 0.0}
    for row in kept["samples"]:
        assert (tmp_path / "samples" / row["png"]).read_bytes().startswith(b"\x89PNG")
    ((step, pictures, texts),) = shown
    assert step == 7 and texts[0] == "**a** plan 0"
    assert pictures.shape == (4, 2, 2, 3) and pictures[:, 0, 0, 0].tolist() == [ord(name) for name in "abde"]


def test_without_samples_nothing_is_shown(tmp_path: Path) -> None:
    painter = Drawn(SCORES)
    _, shown = score(painter, tmp_path, samples=0)
    assert shown == [] and not any(kept for _, _, kept in painter.asked.values())
    assert json.loads((tmp_path / "samples/dev-000007.json").read_text())["samples"] == []


def test_a_metric_that_scores_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="'judge' scored no picture"):
        score(Drawn({name: [None, None] for name in SCORES}), tmp_path)
