"""The weight channel through a real Ray object store: publisher and receivers in processes of their own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch

from transport.errors import WeightTransferError
from transport.weights.channel import BucketPlan, Published
from transport.weights.object_store import ObjectStorePublisher, ObjectStoreReceiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def tensors(version: int) -> dict[str, torch.Tensor]:
    """Tensors of several dtypes, odd lengths, and one larger than a bucket of 1 MiB."""
    generator = torch.Generator().manual_seed(version)
    return {
        "model.a": torch.randn(300, 301, generator=generator),
        "model.b": torch.randn(7, generator=generator).to(torch.bfloat16),
        "model.scalar": torch.tensor(float(version)),
        "model.large": torch.randn(600, 601, generator=generator),
        "model.strided": torch.randn(40, 30, generator=generator).t(),
        "model.flags": torch.tensor([True, False, True]),
        "model.empty": torch.empty(0, 4),
        "model.c": torch.randn(500, 500, generator=generator),
    }


class Learner:
    """Publishes one tensor at a time out of a buffer that it overwrites, as a gathered ZeRO 3 parameter is."""

    def __init__(self) -> None:
        self.publisher = ObjectStorePublisher(bucket_mb=1)

    def publish(self, version: int) -> Published:
        def gathered() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in tensors(version).items():
                held = tensor.clone()
                yield name, held
                held.zero_()

        return self.publisher.publish(version, gathered())

    def newest(self) -> Published | None:
        return self.publisher.newest()


class Actor:
    """Receives, and says which tensors are as they were published."""

    def apply(self, published: Published, deadline_s: float = 20) -> tuple[int, list[str]]:
        expected = tensors(published.version)
        received = {name: t.clone() for name, t in ObjectStoreReceiver().receive(published, deadline_s)}
        equal = [
            name for name, t in received.items() if t.dtype == expected[name].dtype and torch.equal(t, expected[name])
        ]
        return published.version, equal


@pytest.fixture(scope="module")
def learner(shared_ray: None) -> Any:
    return ray.remote(num_cpus=0)(Learner).remote()


@pytest.fixture(scope="module")
def actor(shared_ray: None) -> Any:
    return ray.remote(num_cpus=0)(Actor).remote()


def test_an_actor_receives_every_tensor(learner: Any, actor: Any) -> None:
    published = ray.get(learner.publish.remote(1), timeout=120)
    assert len(published.handles) == len(published.manifest.bucket_bytes) == 3
    assert published.manifest.bucket_bytes[1] == 600 * 601 * 4, "a large tensor has a bucket of its own"
    assert ray.get(actor.apply.remote(published), timeout=120) == (1, list(tensors(1)))


def test_an_actor_that_joins_late_asks_for_the_newest(learner: Any, actor: Any) -> None:
    older = ray.get(learner.publish.remote(2), timeout=120)
    published = ray.get(learner.publish.remote(3), timeout=120)
    assert published.checksum != older.checksum
    late = ray.remote(num_cpus=0)(Actor).remote()
    newest = ray.get(learner.newest.remote(), timeout=120)
    assert newest.manifest == published.manifest
    assert ray.get(late.apply.remote(newest), timeout=120) == (3, list(tensors(3)))
    assert ray.get(actor.apply.remote(older), timeout=120) == (2, list(tensors(2))), "an actor may be one behind"


def test_versions_rise(shared_ray: None) -> None:
    publisher = ObjectStorePublisher(bucket_mb=1)
    assert publisher.newest() is None
    first = publisher.publish(5, tensors(5).items())
    for version in (5, 4):
        with pytest.raises(WeightTransferError, match=rf"weights {version}: version 5 is already published"):
            publisher.publish(version, tensors(5).items())
    with pytest.raises(WeightTransferError, match=r"'model\.a' comes twice"):
        publisher.publish(6, [*tensors(5).items(), *tensors(5).items()])
    with pytest.raises(WeightTransferError, match="no tensor to publish"):
        publisher.publish(6, [])
    assert publisher.newest() is first
    assert publisher.publish(6, tensors(5).items()).checksum == first.checksum, "equal weights, equal checksum"


def test_a_tensor_larger_than_a_bucket_travels_wherever_it_stands(shared_ray: None) -> None:
    large, small = torch.randn(600, 601), torch.randn(5)
    for order in ([large], [large, small], [small, large], [large, small, large.t(), small, large]):
        sent = {f"model.{number}": tensor for number, tensor in enumerate(order)}
        published = ObjectStorePublisher(bucket_mb=1).publish(1, sent.items())
        assert len(published.handles) == len(order), "neighbours do not share the large one's bucket"
        arrived = dict(ObjectStoreReceiver().receive(published, 60))
        assert list(arrived) == list(sent)
        assert all(torch.equal(arrived[name], tensor) for name, tensor in sent.items())


def test_a_damaged_bucket_is_named_before_any_of_it_is_used(shared_ray: None) -> None:
    published = ObjectStorePublisher(bucket_mb=1).publish(7, tensors(7).items())
    damaged = ray.get(published.handles[1]).copy()
    damaged[1000] ^= 1
    for content, message in (
        (damaged, "damaged, its checksum"),
        (damaged[:-1], "not the 1442400 bytes"),
        ("text", "not the 1442400 bytes"),
    ):
        handles = (published.handles[0], ray.put(content), *published.handles[2:])
        arriving = ObjectStoreReceiver().receive(dataclasses.replace(published, handles=handles), 60)
        seen: list[str] = []
        with pytest.raises(WeightTransferError, match=rf"weights 7, bucket 2 of 3: {message}"):
            seen.extend(name for name, _ in arriving)
        assert seen == ["model.a", "model.b", "model.scalar"]


def test_a_bucket_that_does_not_come_is_named_at_the_deadline(shared_ray: None) -> None:
    published = ObjectStorePublisher(bucket_mb=1).publish(8, tensors(8).items())
    never = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    handles = (*published.handles[:2], never)
    started = time.monotonic()
    with pytest.raises(WeightTransferError, match=r"weights 8, bucket 3 of 3: not there after 0\.3 s"):
        list(ObjectStoreReceiver().receive(dataclasses.replace(published, handles=handles), 0.3))
    assert time.monotonic() - started < 60
    ray.cancel(never, force=True)


def test_a_learner_that_died_takes_its_weights_along_and_that_is_said(shared_ray: None, actor: Any) -> None:
    doomed = ray.remote(num_cpus=0)(Learner).remote()
    published = ray.get(doomed.publish.remote(9), timeout=120)
    ray.kill(doomed)
    ends_at = time.monotonic() + 60
    # Until Ray has noticed the death, its objects still arrive, and whole.
    with pytest.raises(WeightTransferError, match=r"weights 9, bucket \d of 3: lost, for the learner that published"):
        while time.monotonic() < ends_at:
            assert ray.get(actor.apply.remote(published, 10), timeout=120) == (9, list(tensors(9)))
            time.sleep(0.2)


def test_both_sides_of_a_broadcast_make_the_same_plan() -> None:
    plans = [BucketPlan(100), BucketPlan(100)]
    for plan in plans:
        for name, tensor in tensors(1).items():
            plan.add(name, tensor.dtype, tuple(tensor.shape))
        assert all(spec.offset % 64 == 0 for spec in plan.specs)
        assert all(spec.offset + spec.nbytes <= plan.sizes[spec.bucket] for spec in plan.specs)
    assert plans[0].specs == plans[1].specs
