"""The parts of a weight transport: a publisher on the learner, a receiver on every actor, a manifest between them.

`broadcast` uses the same manifest but has no publisher: both sides act at the same time.
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
"""Bytes; every tensor of a bucket starts at a multiple of this number, so a view of any dtype is possible."""


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
    """All that a receiver must know before the first byte arrives.

    `tensors` are in published order; `bucket_bytes` and `checksums` have one entry per bucket. A receiver may
    allocate its buckets from the manifest. A broadcast has no `checksums` here: each follows at the end of its
    bucket.
    """

    version: int
    tensors: tuple[TensorSpec, ...]
    bucket_bytes: tuple[int, ...]
    checksums: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, version: int, layout: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], bucket_bytes: int
    ) -> WeightManifest:
        """The manifest of tensors that are known only by name, dtype and shape.

        Raises:
            WeightTransferError: there is no tensor, or a name comes twice.
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
        """Whether the tensors are a LoRA adapter (`policy.lora`)."""
        return any(spec.name == SCALE for spec in self.tensors)

    def stand_ins(self) -> list[tuple[str, torch.Tensor]]:
        """Tensors with these names, dtypes and shapes but without memory: to check the manifest against a model."""
        return [(spec.name, torch.zeros((), dtype=spec.dtype).expand(spec.shape)) for spec in self.tensors]


@dataclass(frozen=True, slots=True)
class Published:
    """One published version of the weights; small, and safe to pass between Ray actors.

    `handles` belong to the transport: for the object store one object reference per bucket.
    """

    manifest: WeightManifest
    handles: tuple[Any, ...]

    @property
    def version(self) -> int:
        """The weight version; it increases with every publication."""
        return self.manifest.version

    @property
    def bytes(self) -> int:
        """Bytes that travel to each receiver."""
        return sum(self.manifest.bucket_bytes)

    @property
    def checksum(self) -> int:
        """Checksum of the buckets' checksums: equal for equal weights in equal buckets."""
        return zlib.crc32(b"".join(value.to_bytes(4, "big") for value in self.manifest.checksums))


class WeightPublisher(ABC):
    """The learner's side. Invariant: `newest` is completely published."""

    @abstractmethod
    def publish(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> Published:
        """Publish `tensors` as `version`, which is greater than any before.

        If several ranks share the tensors (ZeRO 3), iterating is a collective that gathers them: every rank must
        iterate, and one of them does so here. Tensors may be generated one at a time, and may change once this
        returns.

        Raises:
            WeightTransferError: nothing to publish, a name twice, or a version that does not rise.
        """

    @abstractmethod
    def newest(self) -> Published | None:
        """The newest version, for an actor that joins late; None before the first."""


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
    """Assigns tensors to buckets of at most `bucket_bytes` bytes; a larger tensor gets its own bucket.

    The layout depends only on order, dtypes and shapes, so both sides of a broadcast compute the same one.
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
