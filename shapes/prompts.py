"""The prompts of the shapes world, family by family, and their split into train, dev and test.

    python -m shapes.prompts --out FOLDER     writes train.jsonl, dev.jsonl and test.jsonl

A *combination* is the content of a prompt, independent of its wording. Combinations are held out, so training has no
wording of a test prompt's content, and no mirror image of its relation. Tune on dev, report test.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import Literal

from policy.prompts import CountInfo, PromptRecord, SpatialInfo
from shapes.world import FAMILIES, LOCALITIES, NUMBERS, PLURALS, THINGS, Thing

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
DATA = Path(__file__).parent / "data"

KNOWN_SHAPES = {
    "a coin": "circle", "a wheel": "circle", "a plate": "circle",
    "a window": "square", "a tile": "square", "a chessboard": "square",
    "a pyramid": "triangle", "a tent": "triangle", "a sail": "triangle",
    "a starfish": "star", "a sheriff badge": "star", "a starfruit": "star",
    "a plus sign": "cross", "a crossroads": "cross", "a windmill": "cross",
}  # fmt: skip
KNOWN_COLOURS = {
    "blood": "red", "a ruby": "red", "a tomato": "red",
    "grass": "green", "an emerald": "green", "a frog": "green",
    "the sky": "blue", "the sea": "blue", "a sapphire": "blue",
    "a banana": "yellow", "a lemon": "yellow", "the sun": "yellow",
    "a carrot": "orange", "a pumpkin": "orange", "a tangerine": "orange",
    "an eggplant": "purple", "lavender": "purple", "an amethyst": "purple",
    "snow": "white", "milk": "white", "chalk": "white",
    "coal": "black", "the night": "black", "a raven": "black",
}  # fmt: skip

_ROWS = {"train": 200, "dev": 24, "test": 24}  # rows a family at most
_HELD_OUT = 0.2  # share of a family's combinations that goes to dev and test together
_MIN_HELD_OUT = 16


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _pairs() -> list[tuple[Thing, Thing]]:
    """Unordered pairs of things that differ in both colour and shape."""
    return [(p, q) for p, q in combinations(THINGS, 2) if p.colour != q.colour and p.shape != q.shape]


def _single() -> list[list[PromptRecord]]:
    def rows(thing: Thing) -> list[PromptRecord]:
        wordings = (_a(thing.name), f"one {thing.name}", f"{_a(thing.shape)} that is {thing.colour}")
        return [
            PromptRecord(
                prompt=wording, task_type="object", nouns=(thing.name,), attr_nouns=(thing.name,), family="single"
            )
            for wording in wordings
        ]

    return [rows(thing) for thing in THINGS]


def _binding() -> list[list[PromptRecord]]:
    def row(first: Thing, second: Thing) -> PromptRecord:
        names = (first.name, second.name)
        prompt = f"{_a(first.name)} and {_a(second.name)}"
        return PromptRecord(prompt=prompt, task_type="color", nouns=names, attr_nouns=names, family="binding")

    return [[row(first, second), row(second, first)] for first, second in _pairs()]


def _spatial() -> list[list[PromptRecord]]:
    def row(first: Thing, locality: str, second: Thing) -> PromptRecord:
        return PromptRecord(
            prompt=f"{_a(first.name)} {locality} {_a(second.name)}",
            task_type="spatial",
            nouns=(first.name, second.name),
            spatial_info=SpatialInfo(obj1=first.name, obj2=second.name, locality=locality),
            family="spatial",
        )

    opposite = {
        a: b for a, b in product(LOCALITIES, LOCALITIES) if [-d for d in LOCALITIES[a]] == list(LOCALITIES[b])
    }
    return [
        [row(first, locality, second), row(second, opposite[locality], first)]
        for first, second in _pairs()
        for locality in LOCALITIES
    ]


def _counting() -> list[list[PromptRecord]]:
    def rows(thing: Thing, number: int) -> list[PromptRecord]:
        things = f"{NUMBERS[number]} {thing.colour} {PLURALS[thing.shape]}"
        return [
            PromptRecord(
                prompt=wording,
                task_type="numeracy",
                nouns=(thing.name,),
                numeracy_info=(CountInfo(obj_name=thing.name, num=number),),
                family="counting",
            )
            for wording in (things, f"exactly {things}", f"a group of {things}")
        ]

    return [rows(thing, number) for thing, number in product(THINGS, NUMBERS)]


def _knowledge() -> list[list[PromptRecord]]:
    def row(shaped: str, coloured: str) -> PromptRecord:
        name = Thing(KNOWN_COLOURS[coloured], KNOWN_SHAPES[shaped]).name
        return PromptRecord(
            prompt=f"the shape of {shaped} in the colour of {coloured}",
            task_type="complex",
            nouns=(name,),
            attr_nouns=(name,),
            family="knowledge",
        )

    return [[row(shaped, coloured)] for shaped, coloured in product(KNOWN_SHAPES, KNOWN_COLOURS)]


_MAKERS: dict[str, Callable[[], list[list[PromptRecord]]]] = {
    "single": _single,
    "binding": _binding,
    "spatial": _spatial,
    "counting": _counting,
    "knowledge": _knowledge,
}


@cache
def _combinations(family: str) -> list[list[PromptRecord]]:
    """A family's combinations, each with all its wordings."""
    return _MAKERS[family]()


def all_records(split: Split, family: str) -> list[PromptRecord]:
    """Every prompt of a family in a split, in random but fixed order; a combination's wordings are spread out."""
    random = Random(f"{family}/split")
    combos = list(_combinations(family))
    random.shuffle(combos)
    held_out = max(_MIN_HELD_OUT, int(_HELD_OUT * len(combos)))
    part = {"dev": combos[: held_out // 2], "test": combos[held_out // 2 : held_out], "train": combos[held_out:]}
    wordings = max(map(len, combos))
    return [combo[(i + k) % len(combo)] for k in range(wordings) for i, combo in enumerate(part[split])]


def split_records(split: Split) -> list[PromptRecord]:
    """The rows of a split's file: a limited number per family, shuffled, so that any part of it is a fair mix."""
    rows = [record for family in FAMILIES for record in all_records(split, family)[: _ROWS[split]]]
    Random(f"{split}/order").shuffle(rows)
    return rows


def write_splits(folder: Path) -> None:
    """Write one JSON Lines file per split into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        lines = [
            json.dumps(record.model_dump(exclude_defaults=True), ensure_ascii=False)
            for record in split_records(split)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DATA, help="folder for the three files")
    write_splits(parser.parse_args().out)
