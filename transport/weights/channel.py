"""What a weight transport is: a publisher on the learner, a receiver on every actor, a manifest between them."""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

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

    `tensors` stand in the order in which they were published, `bucket_bytes` and `checksums` (CRC-32) are one a
    bucket. A receiver may allocate its buckets from it.
    """

    version: int
    tensors: tuple[TensorSpec, ...]
    bucket_bytes: tuple[int, ...]
    checksums: tuple[int, ...]


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
        """CRC-32 over the buckets' checksums: equal for equal weights in equal buckets."""
        return zlib.crc32(b"".join(value.to_bytes(4, "big") for value in self.manifest.checksums))


class WeightPublisher(ABC):
    """The learner's side. Invariant: `newest` is a version that is there as a whole."""

    @abstractmethod
    def publish(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> Published:
        """Publish `tensors` as `version`, which is greater than any before.

        Where several ranks share the tensors (ZeRO 3), iterating gathers them, a collective: each rank iterates,
        one of them here. Tensors may be generated one at a time and may change once this returns, unless the
        transport overrides `wait`.

        Raises:
            WeightTransferError: nothing to publish, a name twice, or a version that does not rise.
        """

    @abstractmethod
    def newest(self) -> Published | None:
        """The version that an actor which joins late asks for; None before the first."""

    def wait(self, deadline_s: float) -> None:  # noqa: B027 - nothing to wait for is a valid transport
        """Return once the published tensors may change.

        A broadcast (NCCL) returns from `publish` as soon as receivers may start, sends from a thread of its own and
        is waited for here; a transport that copies has nothing to wait for.
        """


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
