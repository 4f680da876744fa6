"""What a weight transport is: a publisher on the learner, a receiver on every actor, a manifest between them.

A broadcast (`broadcast`) has the manifest in common with it, but no publisher: both sides act at once.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from policy.lora import SCALE
from transport.errors import WeightTransferError

ALIGNMENT = 64
"""Bytes; every tensor of a bucket starts at a multiple of it, so that a view of any dtype is possible."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies: `nbytes` bytes from `offset` on in bucket `bucket`, of `dtype` and `shape`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    bucket: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """All that a receiver has to know before the first byte comes.

    `tensors` stand in the order in which they were published, `bucket_bytes` and `checksums` are one a bucket. A
    receiver may allocate its buckets from it. A broadcast has no `checksums` here: each comes at its bucket's end.
    """

    version: int
    tensors: tuple[TensorSpec, ...]
    bucket_bytes: tuple[int, ...]
    checksums: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, version: int, layout: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], bucket_bytes: int
    ) -> WeightManifest:
        """The manifest of tensors that are only known by name, dtype and shape.

        Raises:
            WeightTransferError: there is none, or a name comes twice.
        """
        plan = BucketPlan(bucket_bytes)
        for name, dtype, shape in layout:
            plan.add(name, dtype, shape)
        if not plan.specs:
            raise WeightTransferError(f"weights {version}: no tensor to publish")
        twice = next((name for name, count in Counter(spec.name for spec in plan.specs).items() if count > 1), None)
        if twice:
            raise WeightTransferError(f"weights {version}: {twice!r} comes twice")
        return cls(version, tuple(plan.specs), tuple(plan.sizes))

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA adapter that travels (`policy.lora`)."""
        return any(spec.name == SCALE for spec in self.tensors)

    def stand_ins(self) -> list[tuple[str, torch.Tensor]]:
        """A tensor of each name, dtype and shape, without memory: to check what is to come against a model."""
        return [(spec.name, torch.zeros((), dtype=spec.dtype).expand(spec.shape)) for spec in self.tensors]


@dataclass(frozen=True, slots=True)
class Published:
    """One version of the weights, as it is handed to actors; small, and safe to pass between Ray actors.

    `handles` belong to the transport: for the object store one object reference a bucket.
    """

    manifest: WeightManifest
    handles: tuple[Any, ...]

    @property
    def version(self) -> int:
        """Number of the weight version; rises by publication."""
        return self.manifest.version

    @property
    def bytes(self) -> int:
        """Bytes that travel to each receiver."""
        return sum(self.manifest.bucket_bytes)

    @property
    def checksum(self) -> int:
        """Of the buckets' checksums: equal for equal weights in equal buckets."""
        return zlib.crc32(b"".join(value.to_bytes(4, "big") for value in self.manifest.checksums))


class WeightPublisher(ABC):
    """The learner's side. Invariant: `newest` is a version that is there as a whole."""

    @abstractmethod
    def publish(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> Published:
        """Publish `tensors` as `version`, which is greater than any before.

        Where several ranks share the tensors (ZeRO 3), iterating gathers them, a collective: each rank iterates,
        one of them here. Tensors may be generated one at a time and may change once this returns.

        Raises:
            WeightTransferError: nothing to publish, a name twice, or a version that does not rise.
        """

    @abstractmethod
    def newest(self) -> Published | None:
        """The version that an actor which joins late asks for; None before the first."""


class WeightReceiver(ABC):
    """The actor's side."""

    @abstractmethod
    def receive(self, published: Published, deadline_s: float) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every `(name, tensor)` in published order, bucket by bucket, all within `deadline_s` seconds.

        Tensors are on the CPU or on the receiver's device, may be views of memory that is shared and read-only, and
        have to be copied from, never written to.

        Raises:
            WeightTransferError: a bucket is late, lost or damaged; names version, bucket and deadline.
        """


class BucketPlan:
    """Lays tensors into buckets of at most `bucket_bytes` bytes; a larger tensor has a bucket of its own.

    The layout depends on the order, dtypes and shapes only, so both sides of a broadcast can make it.
    """

    def __init__(self, bucket_bytes: int) -> None:
        self.bucket_bytes = bucket_bytes
        self.specs: list[TensorSpec] = []
        self.sizes: list[int] = []

    def add(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
        """Place the next tensor; its bucket is one of its own, the last one, or the next."""
        nbytes = math.prod(shape) * dtype.itemsize
        end = self.sizes[-1] if self.sizes else 0
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        if not self.sizes or (end and offset + nbytes > self.bucket_bytes):
            self.sizes.append(0)
            offset = 0
        spec = TensorSpec(name, dtype, shape, len(self.sizes) - 1, offset, nbytes)
        self.sizes[-1] = offset + nbytes
        self.specs.append(spec)
        return spec
