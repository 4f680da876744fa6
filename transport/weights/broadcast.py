"""Weights by broadcast: the learner's rank 0 sends, and every process that holds a model receives at once.

    the driver        host = BroadcastHost(address); seats = host.seats(["learner-0", "image-0", ...], "nccl")
    rank 0            member = BroadcastMember(seats[0]);   member.meet(version, deadline_s)
                      member.send(manifest, tensors, deadline_s)
    every other one   member = BroadcastMember(seats[n]);   check manifest.shapes() against the model
                      member.meet(version, deadline_s);     load(member.receive(manifest, deadline_s))

A broadcast has two parts. `meet` returns when every member is ready and the group is connected. Until then a missing
member costs only the wait, and all weights are unchanged. Then the buckets follow, one broadcast each; the next one
travels while the last one is loaded. If the broadcast breaks off now, a receiver has weights of two versions. vLLM's
packed NCCL transfer works in the same way; both sides here use torch's process groups, because an image actor must
not import vLLM. Between GPUs and CPUs only the backend differs: NCCL or gloo.

Members communicate through a key-value store in the driver, and poll it several times a second during every wait. A
member that fails reports it there; the driver does so for a process that died. Then all other members stop at once.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from transport.errors import WeightTransferError
from transport.rendezvous import Endpoint, Rendezvous
from transport.weights.channel import ALIGNMENT, TensorSpec, WeightManifest
from transport.weights.checksum import checksum

Backend = Literal["gloo", "nccl"]
_GO = "go"
_TRAILER = 3
"""int64 at the end of every bucket's buffer: version, number of the bucket, checksum."""
_ASK_S = 0.2
"""Time between two polls for a stop of the broadcast, while a bucket travels."""
_WORD_S = 1.0
"""Time that a member waits for the others to report their stop; then it names the silent ones."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A process's place in a group: `rank` among `members`; the first member sends.

    `epoch` distinguishes groups that met at the same `store`.
    """

    store: Endpoint
    epoch: int
    rank: int
    members: tuple[str, ...]
    backend: Backend

    @property
    def name(self) -> str:
        """The member's name in errors."""
        return self.members[self.rank]

    def worker(self, number: int) -> Seat:
        """The seat of worker `number` of an engine whose first worker sits here."""
        return replace(self, rank=self.rank + number)


class BroadcastHost:
    """The driver's side: it has the store where members meet, and forms groups."""

    def __init__(self, host: str) -> None:
        """Open the store at `host`, an address of this machine that every member reaches; loopback stays loopback."""
        rendezvous = Rendezvous(host)
        self._endpoint = rendezvous.endpoint
        self._epoch = 0
        self._store = TCPStore(
            host,
            self._endpoint.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=30),
            master_listen_fd=rendezvous.detach(),
        )

    def seats(self, members: Sequence[str], backend: Backend) -> list[Seat]:
        """A new group, whose members meet before the next broadcast; the first one sends."""
        self._epoch += 1
        return [Seat(self._endpoint, self._epoch, rank, tuple(members), backend) for rank in range(len(members))]

    def stop(self, version: int, reason: str) -> None:
        """End the broadcast of `version` to the newest group: every member that is in it fails with `reason`."""
        _stop(self._store, _key(self._epoch, version), reason)

    def forget(self, version: int) -> None:
        """Drop the store's entries about `version`, after all members of the newest group are done with it."""
        prefix = _key(self._epoch, version)
        for key in self._store.list_keys():
            if key.startswith(prefix):
                self._store.delete_key(key)


class BroadcastMember:
    """One process of a group, on the device that its backend serves. Its group lasts until a broadcast breaks off."""

    def __init__(self, seat: Seat) -> None:
        """Opens nothing yet."""
        self.seat = seat
        self._device = torch.device("cuda" if seat.backend == "nccl" else "cpu")
        self._group: Any = None
        self._store: Any = None
        self._works: deque[tuple[Any, str]] = deque()
        self._broken = False

    def meet(self, version: int, deadline_s: float) -> None:
        """Wait until every member is ready for `version`; the first call also connects them.

        Raises:
            WeightTransferError: names the members that are missing after `deadline_s` seconds, or that stopped the
                broadcast. All members get this error, and no weight was sent.
        """
        self._begin(version, deadline_s)
        where = f"weights {version}, before the first bucket"
        try:
            if self._store is None:
                self._store = _connect(self.seat.store, self._left())
            self._set("ready")
            ready = [self._name("ready", rank) for rank in range(len(self.seat.members))]
            start = self._name("start")
            pause = _Pause()
            while not self._store.check([start]):
                if self.seat.rank == 0 and self._store.check(ready):
                    self._store.compare_set(start, "", _GO)
                elif self._left() <= 0:
                    missing = self._without("ready")
                    reason = f"{', '.join(missing)} missing" if missing else "no start from the sender"
                    _stop(self._store, self._key, f"{reason} after {deadline_s:g} s")
                else:
                    pause()
            verdict = self._store.get(start).decode()
        except RuntimeError as error:
            raise WeightTransferError(f"{where}: {self.seat.name} does not reach the store: {error}") from error
        if verdict != _GO:
            raise WeightTransferError(f"{where}: {verdict}")
        if self._group is None:
            try:
                with _errors_are_ours():
                    self._group = _group(self.seat, self._store, self._left())
                self._start(torch.zeros(1, device=self._device), "connecting")
                self._finish()
            except RuntimeError as error:
                self._fail("connecting", error)

    def send(self, manifest: WeightManifest, tensors: Iterable[tuple[str, Tensor]], deadline_s: float) -> None:
        """Rank 0, after `meet`: broadcast `tensors`, which must be those of `manifest` in its order.

        The tensors may be generated one at a time, on any device. A tensor may change once the next one is requested.

        Raises:
            WeightTransferError: it broke off, or the tensors differ from the manifest; receivers fail too.
        """
        self._begin(manifest.version, deadline_s)
        size = max(map(_padded, manifest.bucket_bytes))
        buffers = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(2)]
        specs = iter(manifest.tensors)
        index, filled = 0, 0

        def flush() -> None:
            buffer = buffers[index % 2][: _padded(manifest.bucket_bytes[index])]
            _seal(buffer, manifest, index)
            self._start(buffer, _bucket(manifest, index))

        with self._stopping_others():
            for name, tensor in tensors:
                spec = next(specs, None)
                if spec is None or (name, tensor.dtype, tuple(tensor.shape)) != (spec.name, spec.dtype, spec.shape):
                    raise WeightTransferError(f"weights {manifest.version}: {name!r} is not as it was announced")
                if spec.bucket > index:
                    flush()
                    index, filled = spec.bucket, 0
                    self._finish(all_but=1)  # the previous bucket may still be travelling
                buffers[index % 2][filled : spec.offset] = 0
                filled = spec.offset + spec.nbytes
                flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
                buffers[index % 2][spec.offset : filled].copy_(flat)
            if next(specs, None) is not None:
                raise WeightTransferError(f"weights {manifest.version}: fewer tensors came than were announced")
            flush()
            self._finish()
            self._set("done")

    def receive(
        self, manifest: WeightManifest, deadline_s: float, keep: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """The other ranks, after `meet`: every `(name, tensor)` of `manifest`, on the group's device.

        A tensor is valid until the next one is requested; with `keep` it stays valid. A member that stops iterating
        early breaks the broadcast off for all.

        Raises:
            WeightTransferError: it broke off, or a bucket was damaged; earlier tensors may already be in use.
        """
        self._begin(manifest.version, deadline_s)
        size = max(map(_padded, manifest.bucket_bytes))
        buffers = [] if keep else [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(2)]

        def start(index: int) -> Tensor:
            length = _padded(manifest.bucket_bytes[index])
            buffer = buffers[index % 2] if buffers else torch.empty(length, dtype=torch.uint8, device=self._device)
            self._start(buffer[:length], _bucket(manifest, index))
            return buffer[:length]

        by_bucket: dict[int, list[TensorSpec]] = {}
        for spec in manifest.tensors:
            by_bucket.setdefault(spec.bucket, []).append(spec)
        damaged = ""
        count = len(manifest.bucket_bytes)
        with self._stopping_others():
            buffer = start(0)
            for index in range(count):
                self._finish()
                arrived = buffer
                if index + 1 < count:
                    buffer = start(index + 1)
                if not damaged and not _sealed(arrived, manifest, index):
                    damaged = f"{_bucket(manifest, index)}: damaged, its checksum does not match"
                if damaged:
                    continue  # other members may receive through this process: it takes part until the end
                for spec in by_bucket.get(index, ()):
                    data = arrived[spec.offset : spec.offset + spec.nbytes]
                    yield spec.name, data.view(spec.dtype).view(spec.shape)
            self._set("done")
        if damaged:
            raise WeightTransferError(damaged)

    def leave(self) -> None:
        """Leave the group, even during a transfer."""
        self._works.clear()  # whose last one, too, keeps connections open, at which the others would wait
        group, self._group, self._store = [self._group], None, None
        if group[0] is not None:
            group[0].abort()
            # gloo first finishes its running transfers, which may take until a deadline; so do it in a thread.
            threading.Thread(target=group.clear, name="leaves-broadcast").start()

    def _begin(self, version: int, deadline_s: float) -> None:
        if self._broken:
            raise WeightTransferError(f"weights {version}: {self.seat.name} is in a group that broke; form a new one")
        self._key = _key(self.seat.epoch, version)
        self._version = version
        self._ends_at = time.monotonic() + deadline_s

    def _left(self) -> float:
        return max(0.0, self._ends_at - time.monotonic())

    def _name(self, what: str, rank: int | None = None) -> str:
        return f"{self._key}{what}" if rank is None else f"{self._key}{what}/{rank}"

    def _set(self, what: str) -> None:
        self._store.set(self._name(what, self.seat.rank), "1")

    def _without(self, *whats: str) -> list[str]:
        """Names of the members that reported none of `whats`."""
        return [
            name
            for rank, name in enumerate(self.seat.members)
            if not any(self._store.check([self._name(what, rank)]) for what in whats)
        ]

    def _start(self, buffer: Tensor, where: str) -> None:
        try:
            self._works.append((self._group.broadcast(buffer, 0), where))
        except RuntimeError as error:
            self._fail(where, error)

    def _finish(self, all_but: int = 0) -> None:
        """Wait for the started broadcasts, except the last `all_but`; a stop in the store ends the wait."""
        while len(self._works) > all_but:
            where = self._works[0][1]
            pause, asked = _Pause(), time.monotonic()
            try:
                while not self._works[0][0].is_completed():
                    if self._left() <= 0:
                        raise WeightTransferError("its deadline has passed")
                    if time.monotonic() - asked > _ASK_S:
                        asked = time.monotonic()
                        if self._store.check([self._name("stop")]):
                            raise WeightTransferError("stopped")
                    pause()
                self._works[0][0].wait()
            except RuntimeError as error:
                self._fail(where, error)
            self._works.popleft()

    def _fail(self, where: str, error: BaseException) -> NoReturn:
        """Leave the group, inform the other members, and raise an error that names who is silent or stopped it."""
        self._broken = True
        reason = " ".join(str(error).split())
        try:
            _stop(self._store, self._key, f"{self.seat.name}: {reason}")
            self._set("broken")
            told = self._store.get(self._name("stop")).decode()
            ends_at, pause = time.monotonic() + _WORD_S, _Pause()
            while (silent := self._without("broken", "done")) and time.monotonic() < ends_at:
                pause()
            reason = f"no word from {', '.join(silent)} ({told})" if silent else told
        except RuntimeError as unreachable:
            reason = f"{reason}; the store does not answer either: {unreachable}"
        self.leave()
        raise WeightTransferError(f"{_with_version(where, self._version)}: broke off: {reason}") from error

    @contextmanager
    def _stopping_others(self) -> Iterator[None]:
        """Break the broadcast off for all members if anything else fails inside the context."""
        try:
            yield
        except BaseException as error:
            if not self._broken:
                self._broken = True
                ended = isinstance(error, GeneratorExit)  # whoever iterated says why
                reason = "its model took no more" if ended else f"{type(error).__name__}: {error}"
                with suppress(RuntimeError):  # of a store that is gone with the driver
                    _stop(self._store, self._key, f"{self.seat.name} gave up: {reason}")
                    self._set("broken")
                self.leave()
            raise


def at_seat(member: BroadcastMember | None, seat: Seat) -> BroadcastMember:
    """`member`, if it has that seat; else a new one, and the former leaves its group."""
    if member is not None and member.seat == seat:
        return member
    if member is not None:
        member.leave()
    return BroadcastMember(seat)


class _Pause:
    """Sleeps, a little longer each time."""

    def __init__(self) -> None:
        self._seconds = 5e-5

    def __call__(self) -> None:
        time.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, 5e-3)


def _key(epoch: int, version: int) -> str:
    return f"broadcast/{epoch}/{version}/"


def _stop(store: Any, key: str, reason: str) -> None:
    """Stop a broadcast, before or after its start; the first reason stays."""
    if store.compare_set(f"{key}start", "", reason).decode() == _GO:
        store.compare_set(f"{key}stop", "", reason)


def _connect(endpoint: Endpoint, deadline_s: float) -> Any:
    return TCPStore(endpoint.host, endpoint.port, is_master=False, timeout=timedelta(seconds=max(1.0, deadline_s)))


def _group(seat: Seat, store: Any, deadline_s: float) -> Any:
    """A separate process group: torch's default group is neither created nor used."""
    timeout = timedelta(seconds=max(1.0, deadline_s))
    group: Any = dist.ProcessGroupNCCL if seat.backend == "nccl" else dist.ProcessGroupGloo
    options = group.Options() if seat.backend == "nccl" else group._Options()
    options._timeout = timeout
    if seat.backend == "gloo":
        options._devices = [group.create_device(hostname=_own_address(seat.store))]
        options._threads = 2
    return group(PrefixStore(f"group/{seat.epoch}", store), seat.rank, len(seat.members), options)


def _own_address(endpoint: Endpoint) -> str:
    """The address of this machine on the route to `endpoint`; nothing is sent."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((endpoint.host, endpoint.port))
        return str(probe.getsockname()[0])


@contextmanager
def _errors_are_ours() -> Iterator[None]:
    """Let an NCCL group created inside the context abort its communicator on an error, not the whole process."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "2"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _padded(nbytes: int) -> int:
    """Bytes of a bucket's buffer: the bucket, up to a whole alignment, and its trailer."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT + ALIGNMENT


def _seal(buffer: Tensor, manifest: WeightManifest, index: int) -> None:
    """Write the trailer of a full bucket."""
    nbytes = manifest.bucket_bytes[index]
    trailer = torch.tensor([manifest.version, index, checksum(buffer[:nbytes])])
    buffer[-ALIGNMENT:].view(torch.int64)[:_TRAILER].copy_(trailer)


def _sealed(buffer: Tensor, manifest: WeightManifest, index: int) -> bool:
    """Whether the bucket arrived as it was sent."""
    trailer = buffer[-ALIGNMENT:].view(torch.int64)[:_TRAILER].tolist()
    return bool(trailer == [manifest.version, index, checksum(buffer[: manifest.bucket_bytes[index]])])


def _bucket(manifest: WeightManifest, index: int) -> str:
    return f"weights {manifest.version}, bucket {index + 1} of {len(manifest.bucket_bytes)}"


def _with_version(where: str, version: int) -> str:
    return where if where.startswith("weights ") else f"weights {version}, {where}"
