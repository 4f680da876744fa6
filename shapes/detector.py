"""A detector for pictures of the shapes world: boxes, labels and scores from pixels, no network.

It finds connected regions that differ from the grey background. The nearest palette entry gives the colour, and the
overlap with rendered templates the shape. The score is shape overlap times colour purity, about .9 to 1 for a clean
thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rewards.scoring.detections import Detection
from shapes.renderer import coverage
from shapes.world import BACKGROUND, COLOURS, RADII, REACH, SHAPES, SIZE, Thing

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

STANDS_OUT = 60.0  # RGB distance from the background at which a pixel belongs to a thing
MIN_PIXELS = 12  # smaller regions are specks, not things
_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
_COLOUR_NAMES = tuple(COLOURS)
_SOFTNESS = 40.0  # RGB distance at which a pixel's claim to a colour falls to 1/e


@dataclass(frozen=True, slots=True)
class Region:
    """A connected region. `colours` [8] and `shapes` [5] are match scores in [0, 1], in palette and SHAPES order."""

    box: tuple[int, int, int, int]
    pixels: int
    colours: NDArray[np.float32]
    shapes: NDArray[np.float32]

    @property
    def thing(self) -> Thing:
        """The most similar thing."""
        return Thing(_COLOUR_NAMES[int(self.colours.argmax())], SHAPES[int(self.shapes.argmax())])

    @property
    def score(self) -> float:
        """Similarity to the most similar thing, in [0, 1]."""
        return float(self.colours.max() * self.shapes.max())

    def likeness(self, thing: Thing) -> float:
        """How much this region looks like `thing`, in [0, 1]."""
        colour, shape = _COLOUR_NAMES.index(thing.colour), SHAPES.index(thing.shape)
        return float(self.colours[colour] * self.shapes[shape])


def foreground(picture: Picture) -> Mask:
    """Pixels [48, 48] that stand out from the background. Raises ValueError for a picture of another size."""
    if picture.shape != (SIZE, SIZE, 3):
        raise ValueError(f"a picture of the shapes world is {SIZE}x{SIZE}x3, this one is {picture.shape}")
    offset = picture.astype(np.float32) - np.array(BACKGROUND, dtype=np.float32)
    return np.linalg.norm(offset, axis=-1) > STANDS_OUT


def find_regions(picture: Picture) -> list[Region]:
    """The things of a picture, top to bottom; specks are left out."""
    return [_describe(picture, mask) for mask in _components(foreground(picture)) if mask.sum() >= MIN_PIXELS]


def detect(picture: Picture) -> list[Detection]:
    """Detections labelled "<colour> <shape>", boxes (x1, y1, x2, y2) in pixels."""
    found = []
    for region in find_regions(picture):
        x1, y1, x2, y2 = region.box
        found.append(Detection(region.thing.name, region.score, (float(x1), float(y1), float(x2), float(y2))))
    return found


def _components(mask: Mask) -> list[Mask]:
    """Connected regions (4 neighbours) as masks, by flooding from each unvisited pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        stack, region = [start], np.zeros_like(mask)
        while stack:
            y, x = stack.pop()
            region[y, x] = True
            for neighbour in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if neighbour in left:
                    left.discard(neighbour)
                    stack.append(neighbour)
        regions.append(region)
    return regions


def _describe(picture: Picture, mask: Mask) -> Region:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y1, y2, x1, x2 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    inner = mask.copy()  # edge pixels are mixed with the background and say little about colour
    inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    pixels = picture[inner if inner.sum() >= 4 else mask].astype(np.float32)
    distance = np.linalg.norm(pixels[:, None] - _PALETTE[None], axis=-1)
    nearest = distance.argmin(1)
    claim = np.exp(-((distance.min(1) / _SOFTNESS) ** 2))
    colours = np.array([claim[nearest == i].sum() for i in range(len(_PALETTE))]) / len(pixels)
    shapes = _shape_scores(_covered(picture[y1:y2, x1:x2], mask[y1:y2, x1:x2], pixels))
    return Region((x1, y1, x2, y2), int(mask.sum()), colours.astype(np.float32), shapes)


def _covered(window: Picture, mask: Mask, pixels: NDArray[np.float32]) -> Mask:
    """The pixels of a region that its thing covers by half or more, which is where templates end.

    With `STANDS_OUT` alone a region grows with the colour's vividness, and a blurred circle becomes a square.
    """
    background = np.array(BACKGROUND, dtype=np.float32)
    contrast = np.linalg.norm(np.median(pixels, axis=0) - background)
    covered = mask & (np.linalg.norm(window.astype(np.float32) - background, axis=-1) > contrast / 2)
    return covered if covered.any() else mask


@lru_cache(maxsize=1)
def _templates() -> list[list[Mask]]:
    """For each shape its masks at all radii, cropped to their boxes."""
    cropped = []
    for shape in SHAPES:
        masks = [coverage(shape, radius) > 0.5 for radius in RADII]
        cropped.append([mask[np.ix_(mask.any(1), mask.any(0))] for mask in masks])
    return cropped


def _shape_scores(mask: Mask) -> NDArray[np.float32]:
    """Best intersection over union with each shape's templates, box centre on box centre, [5]."""
    return np.array([max(_overlap(mask, template) for template in row) for row in _templates()], dtype=np.float32)


def _overlap(first: Mask, second: Mask) -> float:
    canvas = np.zeros((2, max(SIZE, REACH), max(SIZE, REACH)), dtype=bool)
    for layer, mask in enumerate((first, second)):
        top, left = (canvas.shape[1] - mask.shape[0]) // 2, (canvas.shape[2] - mask.shape[1]) // 2
        canvas[layer, top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return float((canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum())
