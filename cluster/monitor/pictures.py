"""Two figures per picture. They show when a reward favours something other than the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EDGE = 32
"""Smallest difference in grey levels between neighbours at which a pixel counts as an edge."""


@dataclass(frozen=True, slots=True)
class Look:
    """`entropy` of the 256 grey levels in bits (0 to 8), and the share of pixels that lie on an `edge`."""

    entropy: float
    edges: float


def look(picture: np.ndarray) -> Look:
    """Look at one picture, uint8 [H, W, 3]."""
    grey = (picture @ np.array([299, 587, 114], dtype=np.uint32)) // 1000
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    share = share[share > 0]
    levels = grey.astype(np.int16)
    right, below = np.abs(np.diff(levels, axis=1)), np.abs(np.diff(levels, axis=0))
    edges = (right[:-1] >= EDGE) | (below[:, :-1] >= EDGE)
    return Look(float(-(share * np.log2(share)).sum()) + 0.0, float(edges.mean()))


def look_at(pictures: Sequence[np.ndarray]) -> tuple[Look, ...]:
    """Look at each picture."""
    return tuple(look(picture) for picture in pictures)
