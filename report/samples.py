"""Held-out samples for a report: the same prompt and seed at every scoring, as small pictures and marked-up CoTs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from report.files import Samples, read_json
from report.runs import ReportRun

SCORINGS = 6
"""Number of scorings shown for a prompt: the first, the last, and some between them."""
PICTURES = {"dev": 110, "test": 60}
"""Most pictures shown for a split, over all runs: pictures are most of the page's bytes."""
_LONG_COT = 16
"""Most words of a CoT that is shown under its picture."""
_SIDE = 144
"""Longest side of a picture on the page, pixels; smaller ones stay as they are."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One scoring of a prompt. `words` are (kind, text): "same", or "new" since the frame before."""

    step: int
    picture: str | None
    small: bool
    cot: str
    words: list[tuple[str, str]]
    rewards: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Strip:
    """A prompt in one run, in order of steps. `change` compares the last CoT with the first: "same", "old", "new"."""

    run: str
    frames: list[Frame]
    change: list[tuple[str, str]]

    @property
    def changed(self) -> bool:
        """Whether the last CoT differs from the first."""
        return any(kind != "same" for kind, _ in self.change)

    @property
    def lengths(self) -> tuple[int, int]:
        """Words of the first and of the last CoT."""
        return len(self.frames[0].cot.split()), len(self.frames[-1].cot.split())


@dataclass(frozen=True, slots=True)
class FixedPrompt:
    """A held-out prompt and its strip in every run that kept it."""

    prompt: str
    family: str
    strips: list[Strip]

    @property
    def frames(self) -> int:
        """Frames of the longest strip."""
        return max(len(strip.frames) for strip in self.strips)

    @property
    def long(self) -> bool:
        """Whether a CoT is too long to be shown under its picture."""
        return any(len(frame.cot.split()) > _LONG_COT for strip in self.strips for frame in strip.frames)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean words of the CoTs of a run at the first and the last scoring, over `prompts` of which `changed` differ."""

    run: str
    before: float
    after: float
    changed: int
    prompts: int


def fixed_prompts(runs: Sequence[ReportRun], split: str) -> list[FixedPrompt]:
    """Prompts of a split in the order in which the runs kept them, as many as fit on the page."""
    kept = {run.name: _scorings(run, split) for run in runs}
    families = {
        sample["prompt"]: sample["family"]
        for scorings in kept.values() for scoring in scorings[:1] for sample in scoring["samples"]
    }  # fmt: skip
    together = sum(len(scorings) for scorings in kept.values())
    room = max(1, PICTURES[split] // together) if together else 0
    shown = []
    for prompt in list(families)[:room]:
        strips = [strip for run in runs if (strip := _strip(run, kept[run.name], prompt))]
        shown.append(FixedPrompt(prompt, families[prompt], strips))
    return shown


def compared_cots(prompts: Sequence[FixedPrompt]) -> list[FixedPrompt]:
    """Prompts with the runs that have CoTs of two scorings or more; prompts that changed in most runs first."""
    written = [
        FixedPrompt(one.prompt, one.family, [strip for strip in one.strips
                    if len(strip.frames) > 1 and (strip.frames[0].cot or strip.frames[-1].cot)])
        for one in prompts
    ]  # fmt: skip
    return sorted((one for one in written if one.strips), key=lambda one: -sum(strip.changed for strip in one.strips))


def mean_lengths(prompts: Sequence[FixedPrompt], runs: Sequence[ReportRun]) -> list[Lengths]:
    """The mean lengths of these prompts' CoTs in each run."""
    table = []
    for run in runs:
        strips = [strip for one in prompts for strip in one.strips if strip.run == run.name]
        if strips:
            before, after = (fmean(side) for side in zip(*(strip.lengths for strip in strips), strict=True))
            table.append(Lengths(run.name, before, after, sum(strip.changed for strip in strips), len(strips)))
    return table


def word_changes(before: str, after: str) -> list[tuple[str, str]]:
    """Runs of words that are the "same" in both texts, "old" (in `before` only) or "new" (in `after` only)."""
    one, two = before.split(), after.split()
    changes = []
    for kind, start, end, other_start, other_end in SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if kind == "equal":
            changes.append(("same", " ".join(one[start:end])))
            continue
        changes.append(("old", " ".join(one[start:end])))
        changes.append(("new", " ".join(two[other_start:other_end])))
    return [(kind, text) for kind, text in changes if text]


def _scorings(run: ReportRun, split: str) -> list[dict[str, Any]]:
    """The run's sample files of a split, at most `SCORINGS`, evenly spread."""
    files = sorted(run.folder.samples.glob(f"{split}-*.json"))
    if len(files) > SCORINGS:
        files = [files[round(place * (len(files) - 1) / (SCORINGS - 1))] for place in range(SCORINGS)]
    return [tree for file in files if (tree := read_json(file, Samples))]


def _strip(run: ReportRun, scorings: Sequence[dict[str, Any]], prompt: str) -> Strip | None:
    found = [
        (scoring["step"], sample)
        for scoring in scorings
        for sample in scoring["samples"]
        if sample["prompt"] == prompt
    ]
    if not found:
        return None
    frames: list[Frame] = []
    for step, sample in found:
        before = frames[-1].cot if frames else sample["cot"]
        words = [change for change in word_changes(before, sample["cot"]) if change[0] != "old"]
        picture, small = _picture(run.folder.samples / sample["png"])
        frames.append(Frame(step, picture, small, sample["cot"], words, sample["rewards"]))
    return Strip(run.name, frames, word_changes(frames[0].cot, frames[-1].cot))


def _picture(path: Path) -> tuple[str | None, bool]:
    """A picture as a data URI, and whether it was small enough to stay unchanged; None without a picture."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            if max(picture.size) <= _SIDE:
                return f"data:image/png;base64,{base64.b64encode(data).decode()}", True
            thumbnail = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # all that Pillow has for a broken one
        return None, False
    thumbnail.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    thumbnail.save(out, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}", False
