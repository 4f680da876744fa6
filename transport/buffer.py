"""The trajectory buffer: one Redis Stream a run, between the rollout side and the learner.

    append ──> stream ──claim──> pending of a consumer ──acknowledge──> gone, its id known as trained
                  ^                     │
                  └──────reclaim────────┘  the consumer died

A group id is appended once, ever: `append` refuses an id that is in the stream or trained. A group leaves the stream
only when it was trained (or forgotten), so a learner that dies between claim and acknowledge finds its groups again.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from transport.buffer_scripts import TRAINED
from transport.errors import BufferCorrupt, BufferTimeout, WireError
from transport.redis_client import BLOCK_S
from transport.stream import Entry, RunStream
from transport.trajectory import TrajectoryGroup
from transport.wire import pack, unpack

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """A group that is ours until acknowledged; `entry_id` is its place in the stream."""

    entry_id: str
    group: TrajectoryGroup


@dataclass(frozen=True, slots=True)
class BufferStats:
    """`depth` groups in the stream, of which `pending` are claimed; the oldest is `oldest_age_s` seconds old.

    `bytes` is the packed size of what is there; `appended` and `redelivered` count since the run's first start.
    """

    depth: int
    pending: int
    oldest_age_s: float
    bytes: int
    appended: int
    redelivered: int


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Group ids after a resume: `kept` are in the stream, `dropped` were, `missing` have to be made again."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]


class TrajectoryBuffer:
    """One process's end of the buffer. Make one in each process; it does not travel.

    Args:
        url: redis://[user:password@]host:port/db, or rediss:// for TLS.
        run: names the keys, `bicot:{run}:...`; letters, digits, dot, dash and underscore.
        capacity: groups in the stream, claimed ones included, at which `append` waits. Below the number of groups of
            one training step, the run cannot go on.
        consumer: who claims. A process that starts again under the same name finds its own claims first.
        reconnect_s: seconds for which a call keeps trying while Redis does not answer, unless its own deadline passes
            first. A Redis that hangs, instead of being gone, adds a socket timeout of 5 s.

    `append`, `read` and `stats` may be called from any thread; the other methods belong to one.

    Raises:
        BufferUnavailable: from any method: Redis did not answer in time, or refuses us.
    """

    def __init__(
        self, url: str, run: str, capacity: int, consumer: str = "learner", *, reconnect_s: float = 10.0
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", run):
            raise ValueError(f"run {run!r}: only letters, digits, dot, dash and underscore can name a buffer")
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: a buffer holds at least one group")
        self.run, self.capacity, self.consumer = run, capacity, consumer
        self._stream = RunStream(url, run, consumer, reconnect_s)
        self._ready: dict[str, Entry] = {}  # ours, not yet given to the caller
        self._given: set[str] = set()  # given to the caller, not yet acknowledged

    def append(self, group: TrajectoryGroup, deadline_s: float) -> bool:
        """Put a group at the end; waits while the buffer is full. False if its id is known already.

        Atomic, and safe to repeat. Where Redis took a group and died before it said so, the repeated attempt, made
        here, is answered with False.

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
        """The next `count` groups in the order they were appended, ours until acknowledged.

        Groups that this consumer owns but was not given since this object was made (claimed before a restart, taken
        by `reclaim`, or by a claim that ran out of time) come first.

        Raises:
            BufferTimeout: fewer after `deadline_s` seconds; they stay ours, and the next claim returns them first.
            BufferCorrupt: an entry cannot be read. It stays ours, and in the way, until it is forgotten.
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
        """The groups at these entries, in this order, whoever claimed them: for the learner's other ranks.

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
        """These groups are trained: they leave the stream, all at once, and their ids stay known.

        Returns how many were still there; repeating it does nothing.
        """
        entries = list(entry_ids)
        done = self._stream.acknowledge(entries)
        self._drop(entries)
        return done

    def reclaim(self, min_idle_s: float) -> int:
        """Take over the groups that other consumers claimed more than `min_idle_s` seconds ago and still hold.

        Returns how many; the next `claim` returns them first. `min_idle_s` has to exceed the longest training step: a
        consumer that is only slow would train its groups a second time.
        """
        taken = self._take(self._stream.take_idle(min_idle_s))
        if taken:
            log.warning("buffer of run %r: took over %d groups of consumers that are gone", self.run, taken)
            self._stream.count_redelivered(taken)
        return taken

    def known_ids(self) -> set[str]:
        """Ids of all groups in the stream or trained."""
        return self._stream.known()

    def forget(self, group_ids: Iterable[str]) -> int:
        """Drop these groups, wherever they are, and their ids, so that they can be appended again.

        Returns how many were known.
        """
        ids = list(group_ids)
        forgotten = self._stream.forget(ids)
        self._drop([entry.entry_id for entry in self._ready.values() if entry.group_id in ids])
        return forgotten

    def reconcile(self, *, trained: Collection[str], in_flight: Collection[str], weight_version: int) -> Reconciled:
        """Make the buffer agree with a checkpoint, at resume, before anyone appends or claims.

        The checkpoint was taken at `weight_version`; it says which groups it has `trained` and which were `in_flight`
        (admitted, not trained). What happened after it is undone: the known ids become exactly `trained` and `kept`.

        - kept: in flight, in the stream, and made by weights up to `weight_version`. Whoever had claimed one, it can
          be claimed again, in its old place.
        - dropped: in the stream, but trained, not in flight, made by later weights, or unreadable.
        - missing: in flight and not kept; to be generated again.

        Safe to repeat. A process of the old run that still appended would have its groups taken for ours: end it
        first.
        """
        wanted = set(in_flight).difference(trained)
        known = dict.fromkeys(trained, TRAINED)
        kept: list[str] = []
        dropped: list[Entry] = []
        size = 0
        for entry in self._stream.all():
            if entry.group_id in wanted and self._made_by(entry) <= weight_version:
                kept.append(entry.group_id)
                known[entry.group_id] = entry.entry_id
                size += len(entry.packed)
            else:
                dropped.append(entry)
        self._stream.replace(known, [entry.entry_id for entry in dropped], size)
        self._ready.clear()
        self._given.clear()
        missing = tuple(name for name in in_flight if name in wanted.difference(kept))
        return Reconciled(tuple(kept), tuple(entry.group_id for entry in dropped), missing)

    def stats(self) -> BufferStats:
        """How full and how old the buffer is."""
        depth, pending, oldest, seconds, micros, size, appended, redelivered = self._stream.stats()
        made_at = int(oldest.split(b"-")[0]) / 1e3 if isinstance(oldest, bytes) and oldest else math.inf
        age = max(0.0, int(seconds) + int(micros) / 1e6 - made_at)
        return BufferStats(int(depth), int(pending), age, int(size), int(appended), int(redelivered))

    def close(self) -> None:
        """Close the connections; what was claimed stays claimed."""
        self._stream.close()

    def _take(self, entries: Iterable[Entry]) -> int:
        """Keep entries that are ours now; returns how many of them we did not have."""
        new = [e for e in entries if e.entry_id not in self._given and e.entry_id not in self._ready]
        self._ready.update((entry.entry_id, entry) for entry in new)
        return len(new)

    def _drop(self, entry_ids: Iterable[str]) -> None:
        for entry_id in entry_ids:
            self._given.discard(entry_id)
            self._ready.pop(entry_id, None)

    def _decode(self, entry: Entry) -> TrajectoryGroup:
        try:
            return unpack(entry.packed)
        except WireError as error:
            raise BufferCorrupt(
                f"buffer of run {self.run!r}: entry {entry.entry_id}, group {entry.group_id!r}, cannot be read "
                f"({error}); forget it to have it made again"
            ) from error

    def _made_by(self, entry: Entry) -> float:
        """The newest weights that made a part of this group; infinity if that cannot be read."""
        try:
            members = self._decode(entry).members
        except BufferCorrupt as error:
            log.warning("%s", error)
            return math.inf
        segments = [segment for m in members for segment in (m.semantic, m.image) if segment is not None]
        return max((segment.weight_version for segment in segments), default=0)


def _place(entry: Entry) -> tuple[int, int]:
    """Entry ids are milliseconds and a sequence number."""
    milliseconds, sequence = entry.entry_id.split("-")
    return int(milliseconds), int(sequence)
