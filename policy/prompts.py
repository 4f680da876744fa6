"""Prompt records in T2I-R1's JSON Lines schema: the prompt, and the content that its picture must show."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

TaskType = Literal["spatial", "numeracy", "color", "complex", "non", "texture", "shape", "object"]


class PromptFileError(ValueError):
    """A prompt file that cannot be used; the message names the file and the line."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SpatialInfo(_Record):
    """`obj1` stands `locality` `obj2`, e.g. a car (obj1) *below* a zebra (obj2)."""

    obj1: str = Field(min_length=1)
    obj2: str = Field(min_length=1)
    locality: str = Field(min_length=1)


class CountInfo(_Record):
    """Exactly `num` of `obj_name`."""

    obj_name: str = Field(min_length=1)
    num: int = Field(ge=1)


class PromptRecord(_Record):
    """One row of a prompt file.

    `nouns` are the objects a detector looks for, `attr_nouns` the attribute phrases a VQA model is asked about.
    Absent keys mean "does not apply". `family` groups held-out scores; without it they are grouped by `task_type`.
    """

    prompt: str = Field(min_length=1)
    task_type: TaskType
    nouns: tuple[str, ...] = Field(min_length=1)
    attr_nouns: tuple[str, ...] = ()
    spatial_info: SpatialInfo | None = None
    numeracy_info: tuple[CountInfo, ...] = ()
    family: str | None = None

    @property
    def id(self) -> str:
        """16 hex digits that depend on the prompt's text alone, so that seeds survive a reordered file."""
        return blake2b(self.prompt.encode(), digest_size=8).hexdigest()

    @property
    def group(self) -> str:
        """The name under which this prompt's scores are reported."""
        return self.family or self.task_type


def load_prompts(path: str | Path, exclude: Iterable[str | Path] = ()) -> list[PromptRecord]:
    """Read a JSON Lines prompt file, in file order, without the prompts of the files in `exclude`.

    A file in `exclude` named *.jsonl is JSON Lines with a `prompt` key; any other file has one prompt per line. Two
    prompts are equal if they differ only in case, spaces and a full stop at the end.

    Raises:
        PromptFileError: a file is missing or empty, has a malformed row or a prompt twice, or no prompt is left.
    """
    path = Path(path)
    kept_away = {_plain(text) for other in exclude for text in _texts(Path(other))}
    records: list[PromptRecord] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(_lines(path, "prompt file"), start=1):
        if not line.strip():
            continue
        record = _parse(line, f"{path}:{number}")
        if record.prompt in first_line:
            raise PromptFileError(
                f"{path}:{number}: the prompt {record.prompt!r} already stands in line {first_line[record.prompt]}"
            )
        first_line[record.prompt] = number
        records.append(record)
    if not records:
        raise PromptFileError(f"{path}: the prompt file is empty")
    left = [record for record in records if _plain(record.prompt) not in kept_away]
    if not left:
        raise PromptFileError(f"{path}: every prompt of it is excluded")
    return left


def _texts(path: Path) -> list[str]:
    """The prompts of a file that a run excludes."""
    lines = [line for line in _lines(path, "file of prompts to exclude") if line.strip()]
    if not lines:
        raise PromptFileError(f"{path}: the file of prompts to exclude is empty")
    if path.suffix != ".jsonl":
        return lines
    try:
        return [str(json.loads(line)["prompt"]) for line in lines]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise PromptFileError(f"{path}: a row has no prompt ({type(error).__name__}: {error})") from error


def _lines(path: Path, what: str) -> list[str]:
    if not path.is_file():
        raise PromptFileError(f"{path}: no such {what}")
    try:
        # splitlines() would break a prompt that holds another end of line, such as U+2028
        return path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise PromptFileError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _plain(prompt: str) -> str:
    return " ".join(prompt.lower().split()).rstrip(". ")


def _parse(line: str, where: str) -> PromptRecord:
    try:
        return PromptRecord.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise PromptFileError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "row"
        raise PromptFileError(f"{where}: {key}: {first['msg']}") from error


def spread(records: Sequence[PromptRecord], count: int) -> list[PromptRecord]:
    """`count` records, taken from each `group` in turn."""
    by_group: dict[str, list[PromptRecord]] = defaultdict(list)
    for record in records:
        by_group[record.group].append(record)
    turns = max(map(len, by_group.values()), default=0)
    return [part[turn] for turn in range(turns) for part in by_group.values() if turn < len(part)][:count]


def rows_by_task(records: Iterable[PromptRecord]) -> dict[str, int]:
    """Number of rows of each task type, most frequent first."""
    return dict(Counter(record.task_type for record in records).most_common())
