"""The groups of whole steps as files, for debugging a run: one file per group, in the wire format.

groups/
    step-000137/            what step 137 trains on
        00001096.group      a group, by its index in the run's prompt order
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from transport.errors import WireError
from transport.trajectory import TrajectoryGroup
from transport.wire import pack, unpack


class GroupFiles:
    """The folder `groups` of a run. Any process may read it, on any machine that sees it."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def write(self, step: int, group: TrajectoryGroup) -> Path:
        """Keep a group that `step` will train on; writing the same group again replaces it. Returns the file.

        Raises:
            WireError: the group cannot be written.
            OSError: the disk refuses.
        """
        folder = self._of(step)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{group.index:08d}.group"
        draft = file.with_suffix(".tmp")
        draft.write_bytes(pack(group))
        return draft.replace(file)

    def read(self, step: int) -> list[TrajectoryGroup]:
        """The kept groups of a step, in the order of their index; empty if none are kept.

        Raises:
            WireError: names the file that is damaged, or cannot be opened.
        """
        groups = []
        for file in sorted(self._of(step).glob("*.group")):
            try:
                groups.append(unpack(file.read_bytes()))
            except (WireError, OSError) as error:
                raise WireError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        return groups

    def steps(self) -> list[int]:
        """The steps with kept groups, in order."""
        names = (re.fullmatch(r"step-([0-9]{6,18})", path.name) for path in self._folder.glob("step-*"))
        return sorted(int(name[1]) for name in names if name)

    def count(self, step: int) -> int:
        """The number of kept groups of a step; reads none of them."""
        return len(list(self._of(step).glob("*.group")))

    def drop_before(self, step: int) -> None:
        """Remove the groups of all steps before `step`."""
        self._drop(kept for kept in self.steps() if kept < step)

    def drop_after(self, step: int) -> None:
        """Remove the groups of all steps after `step`."""
        self._drop(kept for kept in self.steps() if kept > step)

    def _drop(self, steps: Iterable[int]) -> None:
        for step in steps:
            shutil.rmtree(self._of(step), ignore_errors=True)

    def _of(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"
