"""The Redis commands under the buffer: keys, scripts, paging, and one place where Redis may fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import redis

from transport.buffer_scripts import ACKNOWLEDGE, APPEND, STATS
from transport.errors import BufferUnavailable, RedisUnavailable
from transport.redis_client import REFUSED, UNANSWERED, connect, refusal, shown

GROUP = "learner"
"""The stream's consumer group, and its one consumer: each group is trained once."""
_PAGE = 64
_Page = list[tuple[bytes, dict[bytes, bytes]]]
_T = TypeVar("_T")


class Entry(NamedTuple):
    """One entry of the stream."""

    entry_id: str
    group_id: str
    packed: bytes


class RunStream:
    """The keys of one run, `bicot:{run}:...`, and every command on them.

    Every method raises BufferUnavailable, with the URL but not its password, if Redis refuses a command or does not
    answer for `reconnect_s` seconds (or until the call's own `ends_at`, on the monotonic clock).
    """

    def __init__(self, url: str, run: str, reconnect_s: float) -> None:
        self.run = run
        self._url, self._reconnect_s = url, reconnect_s
        # In braces: Redis Cluster then keeps a run's keys on one node, as the scripts need.
        self._stream, self._known, self._counters = (
            f"bicot:{{{run}}}:stream",
            f"bicot:{{{run}}}:known",
            f"bicot:{{{run}}}:counters",
        )
        self._keys = [self._stream, self._known, self._counters]
        self.interrupted = True
        """Set when a reply may have been lost, and with it newly claimed entries."""
        try:
            self._redis = connect(url)
        except RedisUnavailable as error:
            raise BufferUnavailable(f"buffer of run {run!r}: {error}") from None
        self._append = self._redis.register_script(APPEND)
        self._acknowledge = self._redis.register_script(ACKNOWLEDGE)
        self._stats = self._redis.register_script(STATS)
        self._call("opening it", None, self._make_group)

    def append(self, group_id: str, capacity: int, packed: bytes, ends_at: float) -> int:
        """1: appended; 0: known already; -1: full."""
        what = f"appending group {group_id!r}"
        return int(self._call(what, ends_at, self._append, self._keys, [group_id, capacity, packed]))

    def depth(self, ends_at: float | None = None) -> int:
        """Entries in the stream."""
        return int(self._call("asking for its depth", ends_at, self._redis.xlen, self._stream))

    def take_new(self, count: int, block_s: float, ends_at: float) -> Iterator[Entry]:
        """Up to `count` entries that nobody has claimed; waits up to `block_s` seconds for the first."""
        block_ms = max(1, int(1000 * block_s))
        return _entries(self._call("claiming groups", ends_at, self._read_group, ">", count, block_ms))

    def pending(self, ends_at: float) -> Iterator[Entry]:
        """All entries that were claimed and not acknowledged, oldest first."""
        at = "0"
        while page := self._call("reading its claims", ends_at, self._read_group, at, _PAGE, None):
            at = page[-1][0].decode()
            gone = [entry_id for entry_id, fields in page if not fields]  # deleted by somebody else
            if gone:
                self._call("reading its claims", ends_at, self._redis.xack, self._stream, GROUP, *gone)
            yield from _entries(page)

    def at(self, entry_ids: list[str]) -> list[Entry | None]:
        """The entries with these ids, None where there is none."""

        def fetch() -> list[_Page]:
            pipeline = self._redis.pipeline(transaction=False)
            for entry_id in entry_ids:
                pipeline.xrange(self._stream, entry_id, entry_id)
            return list(pipeline.execute())

        return [next(_entries(page), None) for page in self._call(f"reading {len(entry_ids)} groups", None, fetch)]

    def acknowledge(self, entry_ids: list[str]) -> int:
        """Remove these entries; returns how many were there. Their ids count as trained."""
        what = f"acknowledging {len(entry_ids)} groups"
        return int(self._call(what, None, self._acknowledge, self._keys, [GROUP, *entry_ids]))

    def stats(self) -> list[int | bytes]:
        """What the script `STATS` returns."""
        return list(self._call("reading its state", None, self._stats, self._keys, [GROUP]))

    def clear(self, known: Iterable[str]) -> None:
        """Drop every entry, and make exactly these ids known."""
        ids = list(known)

        def write() -> None:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.delete(self._stream, self._known)  # the consumer group goes with its stream
            if ids:
                pipeline.sadd(self._known, *ids)
            pipeline.hset(self._counters, "bytes", 0)
            pipeline.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
            pipeline.execute()

        self._call("clearing it", None, write)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _make_group(self) -> None:
        try:
            self._redis.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _read_group(self, at: str, count: int, block_ms: int | None) -> _Page:
        reply = self._redis.xreadgroup(GROUP, GROUP, {self._stream: at}, count=count, block=block_ms)
        return reply[0][1] if reply else []

    def _call(self, what: str, ends_at: float | None, command: Callable[..., _T], *args: Any) -> _T:
        """Run a command; repeat it while Redis does not answer. All commands here may be repeated."""
        started = time.monotonic()
        give_up_at = min(started + self._reconnect_s, ends_at if ends_at is not None else float("inf"))
        pause = 0.02
        while True:
            try:
                return command(*args)
            except UNANSWERED as error:
                self.interrupted = True
                if isinstance(error, REFUSED):
                    raise self._unavailable(what, refusal(self._url, error)) from error
                if time.monotonic() + pause >= give_up_at:
                    waited = time.monotonic() - started
                    problem = (
                        f"Redis at {shown(self._url)} did not answer for {waited:.1f} s; check that it runs and that "
                        f"this machine reaches it ({error})"
                    )
                    raise self._unavailable(what, problem) from error
                time.sleep(pause)
                pause = min(2 * pause, 0.5)
            except redis.RedisError as error:
                self.interrupted = True
                raise self._unavailable(what, refusal(self._url, error)) from error

    def _unavailable(self, what: str, problem: str) -> BufferUnavailable:
        return BufferUnavailable(f"buffer of run {self.run!r}, {what}: {problem}")


def _entries(page: _Page) -> Iterator[Entry]:
    """The entries of a reply, without those that were deleted meanwhile."""
    for entry_id, fields in page:
        if entry_id and fields:
            yield Entry(entry_id.decode(), fields.get(b"id", b"").decode(errors="replace"), fields.get(b"group", b""))
