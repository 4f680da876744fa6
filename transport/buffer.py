"""The trajectory buffer: one Redis Stream per run, between the rollout side and the learner.

    append ──> stream ──claim──> pending of a consumer ──acknowledge──> gone, its id known as trained

A group id is appended only once: `append` refuses an id that is in the stream or was trained. A group leaves the
stream only after training, or when a resumed run rewinds the buffer.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from transport.errors import BufferCorrupt, BufferTimeout, WireError
from transport.redis_client import BLOCK_S
from transport.stream import Entry, RunStream
from transport.trajectory import TrajectoryGroup
from transport.wire import pack, unpack


@dataclass(frozen=True, slots=True)
class Claim:
    """A group that this consumer owns until it acknowledges it; `entry_id` is the group's place in the stream."""

    entry_id: str
    group: TrajectoryGroup


@dataclass(frozen=True, slots=True)
class BufferStats:
    """`depth` groups in the stream, of which `pending` are claimed; the oldest is `oldest_age_s` seconds old.

    `bytes` is the packed size of the groups in the stream; `appended` counts since the run's first start.
    """

    depth: int
    pending: int
    oldest_age_s: float
    bytes: int
    appended: int


class TrajectoryBuffer:
    """One process's end of the buffer. Create one in each process; it cannot be pickled.

    Args:
        url: redis://[user:password@]host:port/db, rediss:// for TLS, or unix://PATH.
        run: names the keys, `bicot:{run}:...`; letters, digits, dot, dash and underscore.
        capacity: groups in the stream, claimed ones included, at which `append` waits. Below the number of groups of
            one training step, the run cannot go on.
        reconnect_s: seconds for which a call keeps trying while Redis does not answer, unless its own deadline passes
            first. A Redis that hangs, instead of being gone, adds a socket timeout of 5 s.

    `append`, `read` and `stats` may be called from any thread; the other methods belong to one.

    Raises:
        BufferUnavailable: from any method: Redis did not answer in time, or refuses us.
    """

    def __init__(self, url: str, run: str, capacity: int, *, reconnect_s: float = 10.0) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", run):
            raise ValueError(f"run {run!r}: only letters, digits, dot, dash and underscore can name a buffer")
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: a buffer holds at least one group")
        self.run, self.capacity = run, capacity
        self._stream = RunStream(url, run, reconnect_s)
        self._ready: dict[str, Entry] = {}  # claimed by us, not yet given to the caller
        self._given: set[str] = set()  # given to the caller, not yet acknowledged

    def append(self, group: TrajectoryGroup, deadline_s: float) -> bool:
        """Put a group at the end; waits while the buffer is full. False if its id is known already.

        Atomic, and safe to repeat. If Redis stored the group and died before it answered, this method tries again,
        and that attempt returns False.

        Raises:
            BufferTimeout: still full after `deadline_s` seconds.
            WireError: the group cannot be written.
        """
        started = time.monotonic()
        ends_at = started + deadline_s
        packed = pack(group)
        pause = 0.005
        while True:
            answer = self._stream.append(group.id, self.capacity, packed, ends_at)
            if answer >= 0:
                return bool(answer)
            while (depth := self._stream.depth(ends_at)) >= self.capacity:
                left = ends_at - time.monotonic()
                if left <= 0:
                    raise BufferTimeout(
                        f"buffer of run {self.run!r} stayed full ({depth} of {self.capacity} groups) for "
                        f"{time.monotonic() - started:.1f} s while group {group.id!r} waited to be appended; the "
                        "learner is slow or gone"
                    )
                time.sleep(min(pause, left))
                pause = min(2 * pause, 0.25)

    def claim(self, count: int, deadline_s: float) -> list[Claim]:
        """The next `count` groups in the order they were appended; claimed until they are acknowledged.

        Groups from an earlier claim that no caller received come first: claims of a process that died, or claims
        that ran out of time.

        Raises:
            BufferTimeout: fewer after `deadline_s` seconds; they stay claimed, and the next claim returns them first.
            BufferCorrupt: an entry cannot be read. It stays claimed, and blocks later claims, until a rewind.
        """
        ends_at = time.monotonic() + deadline_s
        while True:
            if self._stream.interrupted:
                self._stream.interrupted = False
                self._take(self._stream.pending(ends_at))
            if len(self._ready) >= count:
                break
            left = ends_at - time.monotonic()
            if left <= 0:
                raise BufferTimeout(
                    f"buffer of run {self.run!r} gave {len(self._ready)} of the {count} groups asked for within "
                    f"{deadline_s:g} s; the rollout side is slow or gone"
                )
            self._take(self._stream.take_new(count - len(self._ready), min(left, BLOCK_S), ends_at))
        chosen = sorted(self._ready.values(), key=_place)[:count]
        claims = [Claim(entry.entry_id, self._decode(entry)) for entry in chosen]
        for claim in claims:
            del self._ready[claim.entry_id]
            self._given.add(claim.entry_id)
        return claims

    def read(self, entry_ids: Iterable[str]) -> list[TrajectoryGroup]:
        """The groups at these entries, in this order, regardless of the claimer: for the learner's other ranks.

        Raises:
            BufferCorrupt: an entry is not there (acknowledged, or never was), or cannot be read.
        """
        wanted = list(entry_ids)
        groups = []
        for entry_id, entry in zip(wanted, self._stream.at(wanted), strict=True):
            if entry is None:
                raise BufferCorrupt(f"buffer of run {self.run!r} has no entry {entry_id}; was it acknowledged?")
            groups.append(self._decode(entry))
        return groups

    def acknowledge(self, entry_ids: Iterable[str]) -> int:
        """Remove trained groups from the stream, all at once; their ids stay known.

        Returns how many were still there; repeating the call does nothing.
        """
        entries = list(entry_ids)
        done = self._stream.acknowledge(entries)
        self._given.difference_update(entries)
        return done

    def rewind(self, trained: Iterable[str]) -> int:
        """Drop every group, and make exactly the ids in `trained` the known ones.

        Call it at the start of a run, before any append or claim: in-flight groups are rolled out again. Returns the
        number of dropped groups. Safe to repeat. End all processes of the old run first: the groups that they append
        would count as this run's.
        """
        dropped = self._stream.depth()
        self._stream.clear(trained)
        self._ready.clear()
        self._given.clear()
        return dropped

    def stats(self) -> BufferStats:
        """How full and how old the buffer is."""
        depth, pending, oldest, seconds, micros, size, appended = self._stream.stats()
        made_at = int(oldest.split(b"-")[0]) / 1e3 if isinstance(oldest, bytes) and oldest else math.inf
        age = max(0.0, int(seconds) + int(micros) / 1e6 - made_at)
        return BufferStats(int(depth), int(pending), age, int(size), int(appended))

    def close(self) -> None:
        """Close the connections; what was claimed stays claimed."""
        self._stream.close()

    def _take(self, entries: Iterable[Entry]) -> None:
        """Keep newly claimed entries."""
        self._ready.update((entry.entry_id, entry) for entry in entries if entry.entry_id not in self._given)

    def _decode(self, entry: Entry) -> TrajectoryGroup:
        try:
            return unpack(entry.packed)
        except WireError as error:
            raise BufferCorrupt(
                f"buffer of run {self.run!r}: entry {entry.entry_id}, group {entry.group_id!r}, cannot be read "
                f"({error}); resume the run from its checkpoint to have it made again"
            ) from error


def _place(entry: Entry) -> tuple[int, int]:
    """Entry ids are milliseconds and a sequence number."""
    milliseconds, sequence = entry.entry_id.split("-")
    return int(milliseconds), int(sequence)
