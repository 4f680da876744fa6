"""Pictures of scenes: uint8 [48, 48, 3], anti-aliased shapes on a plain grey background."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from shapes.world import BACKGROUND, COLOURS, REACH, SHAPES, SIZE, Scene

Array = np.ndarray
_SUPERSAMPLING = 5


def _star(x: Array, y: Array) -> Array:
    """Inside a five-pointed star of outer radius 1.05: in polar terms, below the edge between tip and notch."""
    tip, notch = 1.08, 0.46
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    corner_x, corner_y = notch * np.cos(np.pi / 5), notch * np.sin(np.pi / 5)
    return (tip - along) * corner_y >= (tip - corner_x) * across


def _inside(shape: str, x: Array, y: Array) -> Array:
    """Whether points (x right, y down, in radii from the centre) are inside `shape`."""
    if shape == "circle":
        return np.hypot(x, y) <= 0.97
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.86
    if shape == "triangle":
        return (y <= 0.86) & (abs(x) <= (y + 0.98) * 0.56)
    if shape == "star":
        return _star(x, y)
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1.0)
    raise ValueError(f"{shape!r} is not one of {', '.join(SHAPES)}")


@lru_cache(maxsize=256)
def coverage(shape: str, radius: float) -> Array:
    """Share of each pixel that `shape` covers, float32 [16, 16]; the centre is the patch's centre. Do not write."""
    steps = (np.arange(REACH * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING - REACH / 2
    x, y = np.meshgrid(steps / radius, steps / radius)
    fine = _inside(shape, x, y).reshape(REACH, _SUPERSAMPLING, REACH, _SUPERSAMPLING)
    share = fine.mean(axis=(1, 3)).astype(np.float32)
    share.setflags(write=False)
    return share


def render(scene: Scene) -> Array:
    """The picture of `scene`, uint8 [48, 48, 3]. Things in front come last."""
    picture = np.full((SIZE, SIZE, 3), BACKGROUND, dtype=np.float32)
    half = REACH // 2
    for placed in scene:
        patch = picture[placed.y - half : placed.y + half, placed.x - half : placed.x + half]
        share = coverage(placed.thing.shape, placed.radius)[..., None]
        patch += share * (np.array(COLOURS[placed.thing.colour], dtype=np.float32) - patch)
    return picture.round().astype(np.uint8)
