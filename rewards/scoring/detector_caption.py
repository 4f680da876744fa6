"""The detector's caption: a prompt's objects, and the tokens of each object in the caption.

Grounding DINO reads "car. teddy bear." and scores every box against every token. A full stop ends a phrase: tokens
of different phrases do not attend to each other. Boxes are matched to a phrase by the phrase's tokens, never by
decoded text, so any noun matches, with any number of words, accents or word pieces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policy.prompts import PromptRecord
from rewards.config import Scoring

_STOPS = re.compile(r"[.?\s]+")  # Grounding DINO ends a phrase at a full stop and at a question mark


class CaptionError(ValueError):
    """Objects that make no caption; names the phrase or the prompt."""


@dataclass(frozen=True, slots=True)
class Span:
    """`phrase` as the record spells it, and the half-open range of its tokens in the tokenized caption."""

    phrase: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Caption:
    """The text and its tokens, [CLS] and [SEP] included, with one span a phrase."""

    text: str
    input_ids: tuple[int, ...]
    spans: tuple[Span, ...]


def objects(record: PromptRecord, scoring: Scoring = "paper") -> list[str]:
    """The phrases to look for, each once: nouns, then names that occur only in the relation or the counts.

    T2I-R1's code looks for the nouns only, and twice for a noun that is listed twice.
    """
    if scoring == "t2i_r1_code":
        return list(record.nouns)
    names = [*record.nouns, *(count.obj_name for count in record.numeracy_info)]
    if record.spatial_info is not None:
        names += [record.spatial_info.obj1, record.spatial_info.obj2]
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(" ".join(name.lower().split()), name)
    return list(first.values())


def make_caption(phrases: Sequence[str], tokenizer: Any, max_tokens: int = 256) -> Caption:
    """Join phrases for Grounding DINO's tokenizer (a fast BERT tokenizer).

    Raises:
        CaptionError: a phrase without a token, or more tokens than the text model takes.
    """
    text, places = "", []
    for phrase in phrases:
        words = _STOPS.sub(" ", phrase.lower()).strip()
        places.append((phrase, len(text), len(text) + len(words)))
        text += f"{words}. "
    text = text.rstrip()
    tokens = tokenizer(text, return_offsets_mapping=True)
    offsets = [(start, end) for start, end in tokens["offset_mapping"]]
    if len(offsets) > max_tokens:
        raise CaptionError(f"{len(offsets)} tokens in the caption {text!r:.200}, the detector takes {max_tokens}")
    spans = []
    for phrase, low, high in places:
        inside = [i for i, (start, end) in enumerate(offsets) if low <= start and start < end <= high]
        if not inside:
            raise CaptionError(f"{phrase!r} is no word for the detector's tokenizer; correct the prompt file")
        spans.append(Span(phrase, inside[0], inside[-1] + 1))
    return Caption(text, tuple(tokens["input_ids"]), tuple(spans))
