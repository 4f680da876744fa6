"""Weights through Ray's object store: one object and one `ray.get` per bucket, no copy on the actor's side."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from transport.errors import WeightTransferError
from transport.weights.channel import BucketPlan, Published, WeightManifest, WeightPublisher, WeightReceiver
from transport.weights.checksum import checksum


class ObjectStorePublisher(WeightPublisher):
    """Copies tensors into CPU buckets and puts each as one Ray object; a tensor with its own bucket is not copied.

    The objects belong to the publishing process, and are lost if it dies. The publisher keeps the newest version and
    the one before, because an actor may still read the earlier one.
    `bucket_mb` is in MiB, 2**20 bytes.
    """

    def __init__(self, bucket_mb: int) -> None:
        self._staging = torch.empty(bucket_mb << 20, dtype=torch.uint8)
        self._held: list[Published] = []

    def publish(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> Published:
        """See `WeightPublisher`; tensors may be on any device, and may change once the next one is requested."""
        if self._held and version <= self._held[-1].version:
            raise WeightTransferError(f"weights {version}: version {self._held[-1].version} is already published")
        plan = BucketPlan(len(self._staging))
        filled = 0
        handles: list[ray.ObjectRef] = []
        checksums: list[int] = []

        def put(bucket: torch.Tensor) -> None:
            handles.append(ray.put(bucket.numpy()))
            checksums.append(checksum(bucket))

        names: set[str] = set()
        for name, tensor in tensors:
            if name in names:
                raise WeightTransferError(f"weights {version}: {name!r} comes twice")
            names.add(name)
            spec = plan.add(name, tensor.dtype, tuple(tensor.shape))
            if spec.bucket > len(handles):
                put(self._staging[:filled])
                filled = 0
            data = tensor.detach().contiguous().view(-1).view(torch.uint8)
            if spec.nbytes > len(self._staging):
                put(data.cpu())  # a bucket of its own, put directly from its memory
                continue
            self._staging[filled : spec.offset] = 0
            filled = spec.offset + spec.nbytes
            self._staging[spec.offset : filled].copy_(data)
        if not names:
            raise WeightTransferError(f"weights {version}: no tensor to publish")
        if len(handles) < len(plan.sizes):
            put(self._staging[:filled])
        manifest = WeightManifest(version, tuple(plan.specs), tuple(plan.sizes), tuple(checksums))
        self._held = [*self._held[-1:], Published(manifest, tuple(handles))]
        return self._held[-1]

    def newest(self) -> Published | None:
        """See `WeightPublisher`."""
        return self._held[-1] if self._held else None


class ObjectStoreReceiver(WeightReceiver):
    """Maps each bucket into this process and yields views of it."""

    def receive(self, published: Published, deadline_s: float) -> Iterator[tuple[str, torch.Tensor]]:
        """See `WeightReceiver`; a bucket is checked as a whole before its first tensor comes."""
        ends_at = time.monotonic() + deadline_s
        specs = iter(published.manifest.tensors)
        spec = next(specs, None)
        for index in range(len(published.handles)):
            bucket = _get(published, index, max(0.0, ends_at - time.monotonic()), deadline_s)
            while spec is not None and spec.bucket == index:
                data = bucket[spec.offset : spec.offset + spec.nbytes]
                yield spec.name, data.view(spec.dtype).view(spec.shape)
                spec = next(specs, None)


def _get(published: Published, index: int, timeout_s: float, deadline_s: float) -> torch.Tensor:
    """Bucket `index` as uint8 [bytes], checked against the manifest."""
    manifest = published.manifest
    where = f"weights {manifest.version}, bucket {index + 1} of {len(published.handles)}"
    try:
        bucket = ray.get(published.handles[index], timeout=timeout_s)
    except GetTimeoutError as error:
        raise WeightTransferError(f"{where}: not there after {deadline_s:g} s") from error
    except RayError as error:
        raise WeightTransferError(
            f"{where}: lost, for the learner that published it is gone ({type(error).__name__})"
        ) from error
    if not isinstance(bucket, np.ndarray) or bucket.dtype != np.uint8 or bucket.size != manifest.bucket_bytes[index]:
        raise WeightTransferError(f"{where}: not the {manifest.bucket_bytes[index]} bytes that were published")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        data = torch.from_numpy(bucket)
    if checksum(data) != manifest.checksums[index]:
        raise WeightTransferError(f"{where}: damaged, its checksum does not match")
    return data
