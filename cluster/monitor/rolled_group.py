"""A group as the rollout returns it, with figures of its members and their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cluster.monitor.pictures import Look
from transport.trajectory import TrajectoryGroup


@dataclass(frozen=True, slots=True)
class RolledGroup:
    """A trajectory group with a `Look` at each member's picture. The looks stay in the driver.

    `stage_seconds` are the seconds that the group spent in each stage up to the buffer, queues included.
    """

    group: TrajectoryGroup
    looks: tuple[Look, ...]
    stage_seconds: dict[str, float]

    @property
    def diversity(self) -> float:
        """Mean share of image tokens that differ between two members."""
        tokens = torch.stack([member.image.token_ids for member in self.group.members])
        differ = (tokens.unsqueeze(0) != tokens.unsqueeze(1)).float().mean(-1)
        return float(differ.sum() / (len(tokens) * (len(tokens) - 1)))

    def rewards(self) -> dict[str, list[float | None]]:
        """Each reward's scores, member after member."""
        members = self.group.members
        return {name: [member.rewards[name] for member in members] for name in members[0].rewards}
