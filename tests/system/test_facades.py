"""A pool's facade asks for what the actor behind it takes: same method, same arguments, same types."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from actors.image_actor import ImageActor
from actors.semantic_actor import SemanticActor
from cluster.pools.learner_ranks import LearnerRanks
from cluster.pools.rollout_pools import ImagePool, RolloutPool, SemanticPool
from learner.rank import LearnerRank

OWN = {"self", "replica", "work", "_ray_trace_ctx"}
"""Arguments of the facade alone (which replica, what its errors name), and one that Ray adds to an actor's class."""


def arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Names and annotations."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: str(one.annotation) for one in parameters if one.name not in OWN}


@pytest.mark.parametrize(
    ("facade", "actor"),
    [
        (SemanticPool.generate, SemanticActor.generate),
        (ImagePool.sample, ImageActor.sample),
        (RolloutPool.apply_weights, SemanticActor.apply_weights),
        (RolloutPool.apply_weights, ImageActor.apply_weights),
        (RolloutPool.receive_weights, SemanticActor.receive_weights),
        (RolloutPool.receive_weights, ImageActor.receive_weights),
        (LearnerRanks.publish, LearnerRank.publish),
        (LearnerRanks.publish_present, LearnerRank.publish_present),
        (LearnerRanks.announce, LearnerRank.announce),
        (LearnerRanks.broadcast, LearnerRank.broadcast),
    ],
    ids=lambda function: function.__qualname__,
)
def test_a_facade_takes_what_its_actor_takes(facade: Callable[..., Any], actor: Callable[..., Any]) -> None:
    assert facade.__name__ == actor.__name__
    assert arguments(facade) == arguments(actor)


@pytest.mark.parametrize(
    ("facade", "actor"),
    [(SemanticPool.generate, SemanticActor.generate), (ImagePool.sample, ImageActor.sample)],
    ids=lambda function: function.__qualname__,
)
def test_a_facade_gives_what_its_actor_gives(facade: Callable[..., Any], actor: Callable[..., Any]) -> None:
    assert inspect.signature(facade).return_annotation == inspect.signature(actor).return_annotation
