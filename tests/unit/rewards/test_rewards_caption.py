"""A prompt's objects as the detector's caption, over the whole of T2I-R1's training file."""

from __future__ import annotations

from typing import Any

import pytest
from paths import SHARED

from policy.prompts import PromptRecord, load_prompts
from rewards.models.tiny_tokenizers import bert_tokenizer
from rewards.scoring.detector_caption import CaptionError, make_caption, objects

TRAIN = SHARED / "data/t2i_r1/train.jsonl"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bert_tokenizer()


def words(tokenizer: Any, phrases: list[str]) -> dict[str, str]:
    caption = make_caption(phrases, tokenizer)
    return {s.phrase: tokenizer.decode(caption.input_ids[s.start : s.end]) for s in caption.spans}


def record(**fields: Any) -> PromptRecord:
    return PromptRecord.model_validate({"prompt": "p", "task_type": "object", "nouns": ["dog"]} | fields)


def test_phrases_stand_between_full_stops(tokenizer: Any) -> None:
    caption = make_caption(["dog", "TV", "old  wooden chair"], tokenizer)
    assert caption.text == "dog. tv. old wooden chair."
    assert tokenizer.convert_ids_to_tokens(list(caption.input_ids)) == (
        ["[CLS]", "dog", ".", "tv", ".", "old", "wooden", "chair", ".", "[SEP]"]
    )
    assert [(s.phrase, s.start, s.end) for s in caption.spans] == (
        [("dog", 1, 2), ("TV", 3, 4), ("old  wooden chair", 5, 8)]
    )


def test_every_kind_of_noun_has_its_own_tokens(tokenizer: Any) -> None:
    phrases = ["bear", "teddy bear", "piñata", "pom-pom", "st. bernard", "who?", "roll of tape"]
    assert words(tokenizer, phrases) == {
        "bear": "bear",
        "teddy bear": "teddy bear",
        "piñata": "pinata",
        "pom-pom": "pom - pom",
        "st. bernard": "st bernard",
        "who?": "who",
        "roll of tape": "roll of tape",
    }


def test_relation_and_counts_add_their_names() -> None:
    info = {"obj1": "Dog", "obj2": "small cat", "locality": "near"}
    prompt = record(nouns=["dog", "cat", "Cat"], spatial_info=info, numeracy_info=[{"obj_name": "bird", "num": 2}])
    assert objects(prompt) == ["dog", "cat", "bird", "small cat"]
    assert objects(prompt, "t2i_r1_code") == ["dog", "cat", "Cat"]


def test_what_makes_no_caption_is_named(tokenizer: Any) -> None:
    with pytest.raises(CaptionError, match=r"'\.\.' is no word"):
        make_caption(["dog", ".."], tokenizer)
    with pytest.raises(CaptionError, match=r"tokens in the caption .* takes 20"):
        make_caption(["dog"] * 20, tokenizer, max_tokens=20)


@pytest.mark.skipif(not TRAIN.is_file(), reason="T2I-R1's prompt file is not there")
def test_every_training_prompt_has_a_caption(tokenizer: Any) -> None:
    records = load_prompts(TRAIN)
    assert len(records) == 7223
    for prompt in records:
        caption = make_caption(objects(prompt), tokenizer)
        spans = {" ".join(span.phrase.lower().split()) for span in caption.spans}
        names = [*prompt.nouns, *(count.obj_name for count in prompt.numeracy_info)]
        if prompt.spatial_info:
            names += [prompt.spatial_info.obj1, prompt.spatial_info.obj2]
        assert spans == {" ".join(name.lower().split()) for name in names}
        tokens = [set(range(span.start, span.end)) for span in caption.spans]
        assert all(tokens) and sum(map(len, tokens)) == len(set.union(*tokens))


def test_a_caption_may_be_as_long_as_the_detector_takes(tokenizer: Any) -> None:
    assert len(make_caption(["dog", "tv"], tokenizer, max_tokens=6).input_ids) == 6
    with pytest.raises(CaptionError, match=r"6 tokens in the caption 'dog\. tv\.', the detector takes 5"):
        make_caption(["dog", "tv"], tokenizer, max_tokens=5)
