"""One thread that drives one engine: concurrent calls are decoded in one batch, each at one weight version.

Calls of different groups may arrive at any time. Each of their requests joins the running batch as soon as the engine
has room, in order of arrival. `exclusive` work (a weight update) waits until all earlier requests have finished, and
later requests wait for it. So each request runs at one version from start to end.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from actors.errors import DeadlineError, EngineError

logger = logging.getLogger(__name__)

Request = TypeVar("Request", contravariant=True)
Result = TypeVar("Result")
T = TypeVar("T")

_IDLE_S = 1.0


class Engine(Protocol[Request, Result]):
    """The engine that the loop drives. Only the loop's thread calls its methods, except `check`."""

    @property
    def free(self) -> int:
        """How many requests can join now."""

    def check(self, request: Request) -> None:
        """Raise an `ActorError` for a request that cannot be taken; called from any thread."""

    def admit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Add at most `free` requests to the batch, each under its key."""

    def step(self) -> dict[int, Result]:
        """Advance by one token; returns the finished requests, by key."""

    def cancel(self, keys: set[int]) -> None:
        """Forget these keys; unknown ones are ignored."""


@dataclass(slots=True)
class _Job(Generic[T]):
    """A request with its key, or work that needs the engine exclusively."""

    key: int
    request: Any = None
    work: Callable[[], Any] | None = None
    future: Future[T] = field(default_factory=Future)


class BatchLoop(Generic[Request, Result]):
    """Runs an engine in a thread of its own; `name` is the stage in errors and logs."""

    def __init__(self, name: str, engine: Engine[Request, Result]) -> None:
        self._name = name
        self._engine = engine
        self._keys = itertools.count()
        self._ready = threading.Condition()
        self._queue: deque[_Job[Any]] = deque()
        self._running: dict[int, _Job[Any]] = {}
        self._abandoned: set[int] = set()
        self._failure: BaseException | None = None
        self._closed = False
        self._steps = self._row_steps = self._finished = 0
        self._busy_s = 0.0
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    async def run(self, requests: Sequence[Request], deadline_s: float) -> list[Result]:
        """The results of `requests`, in order, within `deadline_s` seconds.

        Raises:
            ActorError: a request cannot be taken; then no request was started.
            DeadlineError: not all requests were done in time; the rest is cancelled.
            EngineError: the engine failed, now or before.
        """
        for request in requests:
            self._engine.check(request)
        jobs: list[_Job[Result]] = [_Job(next(self._keys), request=request) for request in requests]
        return await self._finish(jobs, deadline_s)

    async def exclusive(self, work: Callable[[], T], deadline_s: float) -> T:
        """Run `work` in the engine's thread while no request is running; raises the errors of `work`.

        Raises:
            DeadlineError: `work` did not start, or did not end, in time.
            EngineError: the engine failed, now or before.
        """
        job: _Job[T] = _Job(next(self._keys), work=work)
        return (await self._finish([job], deadline_s))[0]

    def metrics(self) -> dict[str, float]:
        """Counters since the start, and the queue's depth now; `row_steps` sums the requests of every step."""
        with self._ready:
            return {
                "queued": float(len(self._queue)),
                "running": float(len(self._running)),
                "finished": float(self._finished),
                "steps": float(self._steps),
                "row_steps": float(self._row_steps),
                "busy_s": self._busy_s,
            }

    def close(self, deadline_s: float = 10.0) -> None:
        """Stop the thread; queued and running requests fail."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join(deadline_s)

    async def _finish(self, jobs: Sequence[_Job[T]], deadline_s: float) -> list[T]:
        start = time.monotonic()
        self._submit(jobs)
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        except TimeoutError as error:
            done = sum(job.future.done() and not job.future.cancelled() for job in jobs)
            now = self.metrics()
            raise DeadlineError(
                f"{self._name}: {done} of {len(jobs)} requests done after {time.monotonic() - start:.1f} s "
                f"(deadline {deadline_s:g} s); {now['running']:.0f} running, {now['queued']:.0f} queued"
            ) from error
        finally:
            self._abandon(jobs)

    def _submit(self, jobs: Sequence[_Job[Any]]) -> None:
        with self._ready:
            if self._failure or self._closed:
                raise self._dead()
            self._queue.extend(jobs)
            self._ready.notify()

    def _abandon(self, jobs: Sequence[_Job[Any]]) -> None:
        """Drop jobs that nobody waits for any more; finished ones stay."""
        with self._ready:
            open_jobs = {job.key for job in jobs if job.key in self._running}
            gone = {job.key for job in jobs}
            if any(job.key in gone for job in self._queue):
                self._queue = deque(job for job in self._queue if job.key not in gone)
            self._abandoned |= open_jobs
            self._ready.notify()

    def _main(self) -> None:
        try:
            while self._turn():
                pass
            self._failure = EngineError(f"{self._name}: closed")
        except BaseException as error:
            logger.exception("%s: the engine failed", self._name)
            self._failure = error
        with self._ready:
            left = [*self._running.values(), *self._queue]
            self._running, self._queue = {}, deque()
        for job in left:
            if not job.future.done():
                _settle(job.future, error=self._dead())

    def _turn(self) -> bool:
        """Wait for work and do one step; False once closed."""
        with self._ready:
            while not (self._closed or self._queue or self._running):
                self._ready.wait(_IDLE_S)
            if self._closed:
                return False
            abandoned, self._abandoned = self._abandoned, set()
            for key in abandoned:
                self._running.pop(key, None)
        if abandoned:
            self._engine.cancel(abandoned)
        joining = self._next()
        start = time.perf_counter()
        if joining and joining[0].work:
            self._run_alone(joining[0])
            return True
        if joining:
            self._engine.admit([(job.key, job.request) for job in joining])
        if self._running:
            self._record(self._engine.step(), time.perf_counter() - start)
        return True

    def _next(self) -> list[_Job[Any]]:
        """The jobs that start now: exclusive work by itself, or as many requests as there is room for."""
        free = self._engine.free
        joining: list[_Job[Any]] = []
        with self._ready:
            while self._queue and len(joining) < free:
                alone = self._queue[0].work is not None
                if alone and (joining or self._running):
                    break
                job = self._queue.popleft()
                joining.append(job)
                if alone:
                    return joining
            self._running.update((job.key, job) for job in joining)
        return joining

    def _run_alone(self, job: _Job[Any]) -> None:
        assert job.work
        try:
            result = job.work()
        except Exception as error:  # the caller handles the error
            _settle(job.future, error=error)
        else:
            _settle(job.future, result)

    def _record(self, done: dict[int, Any], seconds: float) -> None:
        with self._ready:
            self._steps += 1
            self._row_steps += len(self._running)
            self._finished += len(done)
            self._busy_s += seconds
            jobs = [(self._running.pop(key), result) for key, result in done.items() if key in self._running]
        for job, result in jobs:
            _settle(job.future, result)

    def _dead(self) -> EngineError:
        return EngineError(f"{self._name}: the engine takes no more work: {self._failure or 'closed'}")


def _settle(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Give a future its outcome, unless its caller has gone."""
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
