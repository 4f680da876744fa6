"""Prompts, splits, plans and the tokenizer of the shapes world."""

from functools import cache
from pathlib import Path
from random import Random

import pytest

from policy.config import PolicyConfig
from policy.janus import Policy, make_policy
from policy.prompts import PromptRecord, load_prompts
from policy.tiny import tiny_janus
from shapes.plans import MAX_PLAN_TOKENS, Layout, laid_out, plan_is_right, plan_of
from shapes.prompts import DATA, SPLITS, Split, all_records, split_records, write_splits
from shapes.renderer import render
from shapes.tokenizer import TEMPLATES, build_tokenizer
from shapes.world import FAMILIES, Asked, Thing, asked, place, stands

LAYOUTS: tuple[Layout, ...] = ("row", "column")


def request(record: PromptRecord) -> object:
    """What is asked whatever the wording, mirror images of a relation alike; for knowledge, the prompt."""
    if record.family == "knowledge":
        return record.prompt
    wanted = asked(record)
    forward = (record.family, wanted.things, wanted.direction)
    if wanted.direction is None:
        return (record.family, tuple(sorted(wanted.things)), None)
    back = (record.family, wanted.things[::-1], (-wanted.direction[0], -wanted.direction[1]))
    return min(forward, back)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_request_of_one_split_is_in_another(family: str) -> None:
    requests = {split: {request(record) for record in all_records(split, family)} for split in SPLITS}
    assert all(requests.values())
    assert not requests["train"] & (requests["dev"] | requests["test"])
    assert not requests["dev"] & requests["test"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_word_of_a_held_out_prompt_is_in_a_train_prompt(family: str) -> None:
    words = {split: {w for r in all_records(split, family) for w in r.prompt.split()} for split in SPLITS}
    assert words["dev"] | words["test"] <= words["train"]


@pytest.mark.parametrize("split", SPLITS)
def test_shipped_files_are_what_the_script_writes(split: Split, tmp_path: Path) -> None:
    write_splits(tmp_path)
    assert (DATA / f"{split}.jsonl").read_text() == (tmp_path / f"{split}.jsonl").read_text()
    records = load_prompts(DATA / f"{split}.jsonl")
    assert records == split_records(split)
    assert {record.family for record in records} == set(FAMILIES)
    if split != "train":
        assert all(sum(r.family == family for r in records) == 24 for family in FAMILIES)


def test_place_shows_what_is_asked_and_keeps_its_distance() -> None:
    random = Random(0)
    for split in SPLITS:
        for record in split_records(split):
            wanted = asked(record)
            scene = place(wanted, random)
            assert tuple(placed.thing for placed in scene) == wanted.things
            assert wanted.direction is None or stands(scene[0], scene[1], wanted.direction)
            assert all(max(abs(a.x - b.x), abs(a.y - b.y)) >= 16 for i, a in enumerate(scene) for b in scene[:i])


def test_too_many_things_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 4 things, not 5"):
        place(Asked((Thing("red", "circle"),) * 5), Random(0))


def test_asked_refuses_another_world(records: list[PromptRecord]) -> None:
    foreign = records[0].model_copy(update={"nouns": ("zebra",), "spatial_info": None, "numeracy_info": ()})
    with pytest.raises(ValueError, match="not a thing of the shapes world"):
        asked(foreign)


@cache
def every_prompt() -> dict[str, PromptRecord]:
    return {r.prompt: r for family in FAMILIES for split in SPLITS for r in all_records(split, family)}


@pytest.mark.parametrize(
    ("prompt", "plan", "right"),
    [
        ("a red circle", "red circle", True),
        ("a red circle", "red circle .", True),
        ("a red circle", "red circle left", False),  # left of what?
        ("a red circle", "red square", False),
        ("a red circle", "red circle , red circle", False),
        ("a red circle", "", False),
        ("a red circle", "circle red", False),
        ("a red circle", "red circle , ", False),
        ("a red circle and a blue square", "red circle left , blue square right", True),
        ("a red circle and a blue square", "blue square top , red circle bottom", True),
        ("a red circle and a blue square", "red circle , blue square", True),
        ("a red circle and a blue square", "red circle left , blue square left", False),
        ("a red circle and a blue square", "red circle left , blue square bottom", False),
        ("a red circle and a blue square", "blue circle left , red square right", False),
        ("a red circle above a blue square", "red circle top , blue square bottom", True),
        ("a red circle above a blue square", "blue square bottom , red circle top", True),
        ("a red circle above a blue square", "red circle bottom , blue square top", False),
        ("a red circle above a blue square", "red circle , blue square", False),
        ("three red circles", "red circle , red circle , red circle", True),
        ("three red circles", "red circle , red circle", False),
        ("the shape of a coin in the colour of grass", "green circle", True),
        ("the shape of a coin in the colour of grass", "a coin", False),
    ],
)
def test_plan_is_right(prompt: str, plan: str, right: bool) -> None:
    assert plan_is_right(every_prompt()[prompt], plan) is right


@pytest.fixture(scope="module")
def policy() -> Policy:
    tokenizer = build_tokenizer()
    model = tiny_janus(tokenizer, hidden=32, layers=1)
    return make_policy(model, tokenizer, PolicyConfig(checkpoint="-", templates=TEMPLATES))


def test_every_prompt_and_plan_is_known_words(policy: Policy) -> None:
    tokenizer = policy.tokenizer
    assert len(tokenizer) == 96
    for family in FAMILIES:
        for split in SPLITS:
            for record in all_records(split, family)[:400]:
                for layout in LAYOUTS:
                    plan = plan_of(laid_out(asked(record), layout))
                    ids = tokenizer.encode(plan, add_special_tokens=False)
                    assert policy.prompts.decode(ids) == plan
                    assert len(ids) < MAX_PLAN_TOKENS
                    assert plan_is_right(record, plan)
                prompt = policy.prompts.semantic_prompt(record.prompt)
                prompt += policy.prompts.image_prompt(record.prompt, plan) + ids
                assert tokenizer.unk_token_id not in prompt


def test_rendering_the_same_scene_twice_gives_the_same_picture() -> None:
    scene = place(Asked((Thing("red", "star"), Thing("blue", "cross"))), Random(3))
    assert (render(scene) == render(scene)).all()
    assert render(scene).shape == (48, 48, 3)
