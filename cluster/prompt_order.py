"""Which prompt a run visits when. The order is a pure function of the seed, so a checkpoint stores only a number."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from policy.prompts import PromptRecord


@dataclass(frozen=True, slots=True)
class Visit:
    """The `index`-th prompt of a run; `visit` counts the earlier visits to the same prompt."""

    index: int
    visit: int
    prompt: PromptRecord

    @property
    def group_id(self) -> str:
        """Names the trajectory group of this visit; the same after a restart."""
        return f"{self.index:08d}-{self.prompt.id}-{self.visit}"


class PromptOrder:
    """Every epoch visits every prompt once; with shuffling, each epoch has its own order."""

    def __init__(self, records: list[PromptRecord], seed: int, shuffle: bool) -> None:
        self._records = records
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = lru_cache(maxsize=2)(self._order)

    def __getitem__(self, index: int) -> Visit:
        epoch, place = divmod(index, len(self._records))
        return Visit(index, epoch, self._records[self._epoch(epoch)[place]])

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self._records)))
        if self._shuffle:
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order
