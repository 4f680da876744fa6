"""Plans: the semantic-level CoT of the shapes world, e.g. "red circle left , blue square right"."""

from __future__ import annotations

from typing import Literal

from policy.prompts import PromptRecord
from shapes.world import COLOURS, MAX_THINGS, SHAPES, Asked, Thing, asked

Layout = Literal["row", "column"]

# A place word gives the position of its thing relative to the other thing.
_PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
_WORDS = {direction: place for place, direction in _PLACES.items()}

MAX_PLAN_TOKENS = 12
"""The longest right plan (four things with three commas between them) and the end token."""


def plan_of(what: Asked) -> str:
    """The plan of `what`: its things in order, and the positions of two things if `what` has a direction."""
    if what.direction is None:
        return " , ".join(thing.name for thing in what.things)
    dx, dy = what.direction
    first, second = what.things
    return f"{first.name} {_WORDS[dx, dy]} , {second.name} {_WORDS[-dx, -dy]}"


def laid_out(what: Asked, layout: Layout) -> Asked:
    """`what`, with its first of two things put on the left or at the top where no direction was asked."""
    if what.direction is None and len(what.things) == 2 and what.things[0] != what.things[1]:
        return Asked(what.things, (-1, 0) if layout == "row" else (0, -1))
    return what


def read_plan(cot: str) -> Asked | None:
    """The content of a plan; None for text that is no plan: other words, too many things, contradictory places."""
    things: list[Thing] = []
    places: list[tuple[int, int] | None] = []
    for item in cot.strip().rstrip(".").split(","):
        words = item.split()
        if not 2 <= len(words) <= 3 or words[0] not in COLOURS or words[1] not in SHAPES:
            return None
        if len(words) == 3 and words[2] not in _PLACES:
            return None
        things.append(Thing(words[0], words[1]))
        places.append(_PLACES[words[2]] if len(words) == 3 else None)
    if len(things) > MAX_THINGS:
        return None
    if all(place is None for place in places):
        return Asked(tuple(things))
    match places:
        case [(int(), int()) as first, (int(), int()) as second] if first == (-second[0], -second[1]):
            return Asked(tuple(things), first)
    return None


def plan_is_right(record: PromptRecord, cot: str) -> bool:
    """Whether `cot` plans exactly what `record` asks for: its things, their number and, if asked, their relation.

    If the prompt gives no places, the plan may choose them.
    """
    planned, wanted = read_plan(cot), asked(record)
    if planned is None or sorted(planned.things) != sorted(wanted.things):
        return False
    if wanted.direction is None:
        return True
    if planned.direction is None:
        return False
    if planned.things == wanted.things:
        return planned.direction == wanted.direction
    return planned.direction == (-wanted.direction[0], -wanted.direction[1])
