"""The strict judge: does a picture show exactly what the prompt asks? Analysis by synthesis, without the detector.

It explains a picture with rendered things, best fit first, and accepts it only if nothing is left over. It uses
neither connected regions nor palette distances, so a policy that fools the reward's detector does not fool the judge.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from policy.prompts import PromptRecord
from shapes.renderer import render
from shapes.world import BACKGROUND, CELL, GRID, RADII, REACH, SIZE, THINGS, Placed, Scene, asked, stands

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]

_UNEXPLAINED = 0.25  # share of a patch's contrast that a thing may leave unexplained and still count
_SPECK = 60.0  # RGB distance at which a left-over pixel counts
_MAX_LEFT_OVER = 40  # pixels; edges of well-drawn things leave some
_MAX_THINGS = 6
_HALF = REACH // 2
_CANDIDATES = [(thing, radius) for thing in THINGS for radius in RADII]
_CORNERS = [(CELL * column, CELL * row) for row in range(1, GRID) for column in range(1, GRID)]


def is_right(record: PromptRecord, picture: Picture) -> bool:
    """Whether `picture` shows the right things, no others, in the right number and relation.

    Raises:
        ValueError: the picture is not 48x48, or the record is not of this world.
    """
    scene = explain(picture)
    if scene is None:
        return False
    wanted = asked(record)
    if sorted(placed.thing for placed in scene) != sorted(wanted.things):
        return False
    if wanted.direction is None:
        return True
    first, second = sorted(scene, key=lambda placed: wanted.things.index(placed.thing))
    return stands(first, second, wanted.direction)


def explain(picture: Picture) -> Scene | None:
    """The scene that `picture` shows; None when something in it is no thing of this world."""
    if picture.shape != (SIZE, SIZE, 3):
        raise ValueError(f"a picture of the shapes world is {SIZE}x{SIZE}x3, this one is {picture.shape}")
    scene: list[Placed] = []
    rest = picture.astype(np.float32) - np.array(BACKGROUND, dtype=np.float32)
    templates, energies = _templates()
    for _ in range(_MAX_THINGS):
        patches = np.stack([_patch(rest, x, y).ravel() for x, y in _CORNERS])
        contrast = np.square(patches).sum(1)
        # |patch - template|^2 for every corner of the token grid and every candidate
        error = contrast[:, None] - 2 * patches @ templates.T + energies[None]
        place, best = np.unravel_index(int((contrast[:, None] - error).argmax()), error.shape)
        if error[place, best] > _UNEXPLAINED * contrast[place]:
            break
        x, y = _CORNERS[place]
        thing, radius = _CANDIDATES[best]
        scene.append(Placed(thing, x, y, radius))
        _patch(rest, x, y)[...] -= templates[best].reshape(REACH, REACH, 3)
    left_over = int((np.linalg.norm(rest, axis=-1) > _SPECK).sum())
    return tuple(scene) if left_over <= _MAX_LEFT_OVER * max(1, len(scene)) else None


def _patch(picture: Floats, x: int, y: int) -> Floats:
    return picture[y - _HALF : y + _HALF, x - _HALF : x + _HALF]


@lru_cache(maxsize=1)
def _templates() -> tuple[Floats, Floats]:
    """The patch of every thing at every radius, less the background, [120, 768], and its energy [120]."""
    centre = SIZE // 2
    pictures = [render((Placed(thing, centre, centre, radius),)).astype(np.float32) for thing, radius in _CANDIDATES]
    patches = np.stack([_patch(p, centre, centre) for p in pictures]) - np.array(BACKGROUND, dtype=np.float32)
    flat = patches.reshape(len(_CANDIDATES), -1).astype(np.float32)
    return flat, np.square(flat).sum(1)
