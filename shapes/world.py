"""The shapes world: things, their places, and the content that a prompt record asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from random import Random

from policy.prompts import PromptRecord

SIZE = 48  # pixels a side
CELL = 8  # pixels a side of one image token
GRID = SIZE // CELL
REACH = 2 * CELL  # two things whose centres are this far apart on one axis never share a token

MAX_THINGS = 4
RADII = (6.2, 6.6, 7.0)  # pixels; things vary a little in size

BACKGROUND = (128, 128, 128)
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (30, 150, 50),
    "blue": (30, 70, 215),
    "yellow": (245, 225, 40),
    "orange": (245, 130, 20),
    "purple": (135, 40, 170),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
NUMBERS = {2: "two", 3: "three", 4: "four"}
FAMILIES = ("single", "binding", "spatial", "counting", "knowledge")

# The wording of T2I-R1's localities, and where it puts the first thing as seen from the second (dx, dy; y down).
LOCALITIES: Mapping[str, tuple[int, int]] = {
    "on the left of": (-1, 0),
    "on the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """A coloured shape; its name, e.g. "red circle", is the label the detectors give it."""

    colour: str
    shape: str

    @property
    def name(self) -> str:
        """Colour and shape, e.g. "red circle"."""
        return f"{self.colour} {self.shape}"

    @classmethod
    def named(cls, name: str) -> Thing:
        """The thing called `name`. Raises ValueError for a name that is not of this world."""
        colour, _, shape = name.partition(" ")
        if colour not in COLOURS or shape not in SHAPES:
            raise ValueError(f"{name!r} is not a thing of the shapes world (colour and shape, e.g. 'red circle')")
        return cls(colour, shape)


THINGS = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True, slots=True)
class Placed:
    """A thing with its centre (x, y) in pixels, on a corner of the token grid, and its radius in pixels."""

    thing: Thing
    x: int
    y: int
    radius: float = 6.6


Scene = tuple[Placed, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a picture has to show: exactly these things; `direction` is of the first as seen from the second."""

    things: tuple[Thing, ...]
    direction: tuple[int, int] | None = None


def asked(record: PromptRecord) -> Asked:
    """What `record` asks for, from its annotations. Raises ValueError for a record of another world."""
    if record.numeracy_info:
        return Asked(tuple(Thing.named(c.obj_name) for c in record.numeracy_info for _ in range(c.num)))
    if record.spatial_info:
        info = record.spatial_info
        if info.locality not in LOCALITIES:
            raise ValueError(f"{info.locality!r} is not a locality of the shapes world ({', '.join(LOCALITIES)})")
        return Asked((Thing.named(info.obj1), Thing.named(info.obj2)), LOCALITIES[info.locality])
    return Asked(tuple(Thing.named(noun) for noun in record.nouns))


def stands(first: Placed, second: Placed, direction: tuple[int, int]) -> bool:
    """Whether `first` stands in `direction` from `second`: that axis is the longer one of their offset."""
    dx, dy = first.x - second.x, first.y - second.y
    along, across = (dx * direction[0], dy) if direction[0] else (dy * direction[1], dx)
    return along > abs(across)


@lru_cache(maxsize=4)
def _centres(count: int) -> list[tuple[tuple[int, int], ...]]:
    """Every set of `count` centres (x, y) that keep their distance."""
    corners = [(x, y) for x in range(CELL, SIZE, CELL) for y in range(CELL, SIZE, CELL)]
    return [
        chosen
        for chosen in combinations(corners, count)
        if all(max(abs(x - a), abs(y - b)) >= REACH for (x, y), (a, b) in combinations(chosen, 2))
    ]


def place(what: Asked, random: Random) -> Scene:
    """A random scene that shows exactly what is asked; sizes vary a little, positions are on the grid.

    Raises ValueError for more than MAX_THINGS things.
    """
    if len(what.things) > MAX_THINGS:
        raise ValueError(f"a picture holds at most {MAX_THINGS} things, not {len(what.things)}")
    choices = _centres(len(what.things))
    while True:
        centres = random.sample(random.choice(choices), len(what.things))
        scene = tuple(
            Placed(thing, x, y, random.choice(RADII)) for thing, (x, y) in zip(what.things, centres, strict=True)
        )
        if what.direction is None or stands(scene[0], scene[1], what.direction):
            return scene
