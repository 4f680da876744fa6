"""Trajectory groups a second, into and out of a run's own Redis, append-only file on.

Groups have Janus-Pro's sizes at every scale: 8 members of 576 image and 60 text tokens, prompts of 80 and 150 tokens,
three rewards. The baselines are two queues that people write themselves: a Redis list of pickles, and one of
`torch.save` files. Neither has a bound, both lose the groups that a dead consumer took, and both execute what they
read. The limit is redis-py sending and receiving the same bytes, packed beforehand, through a bare stream.

A run's driver appends from threads of one process, and its learner claims in another process; several producer
processes stand for several drivers. In every figure, producers and consumer are separate processes.
"""

from __future__ import annotations

import io
import multiprocessing
import pickle
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

import redis
import torch

from benchmarks.report import Report, Value
from benchmarks.timing import rate
from policy.prompts import PromptRecord
from transport.buffer import TrajectoryBuffer
from transport.redis_server import start_server
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup
from transport.wire import pack, unpack

PRODUCERS = (1, 2, 4, 8, 16)
CLAIMS = (1, 16, 64)
"""Groups a claim; 16 are a step of the paper's run."""
GROUPS = 640
"""Groups a timed run; a baseline that serialises with Python passes a fifth."""
CAPACITY = 256
PICTURE_BYTES = 1500
DEADLINE_S = 60.0
_TEXT, _PICTURE = 102_400, 16_384


def make_group(pictures: bool = False, seed: int = 0) -> TrajectoryGroup:
    """A random group of the real size; PNGs are as many random bytes, for those do not shrink either."""
    random = torch.Generator().manual_seed(seed)

    def ids(tokens: int, vocabulary: int) -> torch.Tensor:
        return torch.randint(0, vocabulary, (tokens,), generator=random)

    def logprobs(tokens: int) -> torch.Tensor:
        return -10 * torch.rand(tokens, generator=random)

    prompt = ids(80, _TEXT)
    members = []
    for member in range(8):
        semantic = SemanticSegment(prompt.clone(), ids(60, _TEXT), logprobs(60), 1.0, "stop", 3)
        drawn = (ids(150, _TEXT), ids(576, _PICTURE), logprobs(576), logprobs(576))
        image = ImageSegment(*drawn, guidance_scale=5.0, temperature=1.0, weight_version=3)
        rewards = {"hps": 0.28, "detector": 0.75, "vqa": None if member % 2 else 0.5}
        png = bytes(ids(PICTURE_BYTES, 256).tolist()) if pictures else None
        cot = "A red circle stands left of a blue square. " * 6
        members.append(Member(2**62 + member, semantic, image, cot, rewards, png))
    record = PromptRecord(
        prompt="a red circle left of a blue square",
        task_type="spatial",
        nouns=("red circle", "blue square"),
    )
    return TrajectoryGroup("visit-0/0", 0, 0, record, tuple(members))


def torch_saved(group: TrajectoryGroup) -> bytes:
    """A group as the bytes of a `torch.save` file."""
    file = io.BytesIO()
    torch.save(group, file)
    return file.getvalue()


def torch_loaded(data: bytes) -> TrajectoryGroup:
    """The group that `torch_saved` wrote."""
    group: TrajectoryGroup = torch.load(io.BytesIO(data), weights_only=False)
    return group


CONVERSIONS: dict[str, tuple[Callable[[TrajectoryGroup], bytes], Callable[[bytes], TrajectoryGroup]]] = {
    "bicot": (pack, unpack),
    "pickle": (pickle.dumps, pickle.loads),
    "torch.save": (torch_saved, torch_loaded),
}


class Queue(ABC):
    """One way to pass groups through Redis; `run` names its keys. `put` may be called from several threads."""

    share = 1.0
    """Of `GROUPS` that a timed run passes."""

    def __init__(self, url: str, run: str, capacity: int) -> None:
        self.redis, self.run = redis.Redis.from_url(url), run

    @abstractmethod
    def put(self, group: TrajectoryGroup) -> None:
        """Append a group."""

    @abstractmethod
    def take(self, groups: int) -> list[Any]:
        """The next so many groups, which leave the queue."""

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()


class Bicot(Queue):
    """`TrajectoryBuffer`: append; claim, then acknowledge."""

    def __init__(self, url: str, run: str, capacity: int) -> None:
        super().__init__(url, run, capacity)
        self.buffer = TrajectoryBuffer(url, run, capacity)

    def put(self, group: TrajectoryGroup) -> None:
        """Append a group; waits for room."""
        self.buffer.append(group, DEADLINE_S)

    def take(self, groups: int) -> list[TrajectoryGroup]:
        """Claim and acknowledge."""
        claims = self.buffer.claim(groups, DEADLINE_S)
        self.buffer.acknowledge([claim.entry_id for claim in claims])
        return [claim.group for claim in claims]

    def close(self) -> None:
        """Close the connections."""
        self.buffer.close()
        super().close()


class Pickles(Queue):
    """A list of pickles: RPUSH; LPOP of many, or BLPOP where it is empty."""

    share = 0.2
    way = "pickle"

    def put(self, group: TrajectoryGroup) -> None:
        """Pickle a group and push it."""
        self.redis.rpush(self.run, CONVERSIONS[self.way][0](group))

    def take(self, groups: int) -> list[TrajectoryGroup]:
        """Pop, wait where there is none, and unpickle."""
        found: list[bytes] = []
        while len(found) < groups:
            popped = self.redis.lpop(self.run, groups - len(found))
            found += popped or [self.redis.blpop([self.run], DEADLINE_S)[1]]
        return [CONVERSIONS[self.way][1](data) for data in found]


class TorchSaves(Pickles):
    """The same list, of `torch.save` files."""

    way = "torch.save"


class Bare(Queue):
    """The limit: XADD of bytes that lie ready; XREADGROUP, XACK and XDEL, nothing unpacked."""

    def __init__(self, url: str, run: str, capacity: int) -> None:
        super().__init__(url, run, capacity)
        self.packed: bytes | None = None
        try:
            self.redis.xgroup_create(run, "all", id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def put(self, group: TrajectoryGroup) -> None:
        """Send the first group's bytes, whichever this is."""
        self.packed = self.packed or pack(group)
        self.redis.xadd(self.run, {"group": self.packed})

    def take(self, groups: int) -> list[bytes]:
        """Receive bytes, and drop their entries in one round trip."""
        found: list[tuple[bytes, dict[bytes, bytes]]] = []
        while len(found) < groups:
            reply = self.redis.xreadgroup("all", "one", {self.run: ">"}, count=groups - len(found), block=1000)
            found += reply[0][1] if reply else []
        with self.redis.pipeline(transaction=False) as pipeline:
            ids = [entry_id for entry_id, _ in found]
            pipeline.xack(self.run, "all", *ids).xdel(self.run, *ids).execute()
        return [fields[b"group"] for _, fields in found]


QUEUES: dict[str, type[Queue]] = {"bicot": Bicot, "pickle": Pickles, "torch.save": TorchSaves, "limit": Bare}


class Worker:
    """A process that puts or takes when told."""

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, url), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, *order: object) -> None:
        """Send an order: `_work` knows which there are."""
        self._pipe.send(order)

    def wait(self) -> None:
        """Until the order is done."""
        if not self._pipe.poll(2 * DEADLINE_S):
            raise TimeoutError(f"a worker of the benchmark did not answer within {2 * DEADLINE_S:g} s")
        failure = self._pipe.recv()
        if failure:
            raise RuntimeError(f"a worker of the benchmark failed: {failure}")

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def _work(pipe: Connection, url: str) -> None:
    torch.set_num_threads(1)
    groups = {pictures: make_group(pictures) for pictures in (False, True)}

    def put(queue: Queue, first: int, many: int, threads: int, pictures: bool) -> None:

        def some(thread: int) -> None:
            for index in range(first + thread, first + many, threads):
                queue.put(replace(groups[pictures], id=f"visit-0/{index}", index=index))

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, range(threads)))

    queue: Any = None
    while True:
        failure = ""
        try:
            match pipe.recv():
                case ("open", name, run, capacity):
                    queue = QUEUES[name](url, run, capacity)
                case ("put", first, many, threads, pictures):
                    put(queue, first, many, threads, pictures)
                case ("take", many, at_once):
                    for done in range(0, many, at_once):
                        queue.take(min(at_once, many - done))
                case ("close",):
                    queue.close()
        except (EOFError, KeyboardInterrupt):
            return
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        pipe.send(failure)


class Stage:
    """A Redis, producers and a consumer, and what can be timed with them."""

    def __init__(self, url: str, producers: int) -> None:
        self._redis = redis.Redis.from_url(url)
        self._consumer, *self._producers = [Worker(url) for _ in range(producers + 1)]
        self._runs = count()

    @contextmanager
    def _opened(self, name: str, capacity: int) -> Iterator[None]:
        workers = [self._consumer, *self._producers]
        _all(workers, "open", name, f"run-{next(self._runs)}", capacity)
        yield
        _all(workers, "close")
        self._redis.flushdb()

    def put(self, name: str, groups: int, producers: int, processes: bool, pictures: bool = False) -> float:
        """Seconds in which so many groups go in, the queue empty at first."""
        with self._opened(name, groups):
            return _timed(lambda: _wait(self._feed(groups, producers, processes, pictures)))

    def take(self, name: str, groups: int, at_once: int, pictures: bool = False) -> float:
        """Seconds in which one consumer takes so many groups out, `at_once` at a time."""
        with self._opened(name, groups):
            _wait(self._feed(groups, 1, False, pictures))
            return _timed(lambda: _all([self._consumer], "take", groups, at_once))

    def flow(
        self, name: str, groups: int, producers: int, processes: bool, at_once: int, pictures: bool = False
    ) -> float:
        """Seconds in which so many groups go in and out, both at once."""
        with self._opened(name, CAPACITY):

            def both() -> None:
                busy = self._feed(groups, producers, processes, pictures)
                _all([self._consumer], "take", groups, at_once)
                _wait(busy)

            return _timed(both)

    def close(self) -> None:
        """End all processes."""
        for worker in (self._consumer, *self._producers):
            worker.close()
        self._redis.close()

    def _feed(self, groups: int, producers: int, processes: bool, pictures: bool) -> list[Worker]:
        """Tell producers to begin; returns whom to wait for."""
        if not processes:
            self._producers[0].tell("put", 0, groups, producers, pictures)
            return self._producers[:1]
        bounds = [groups * part // producers for part in range(producers + 1)]
        busy = self._producers[:producers]
        for worker, first, end in zip(busy, bounds, bounds[1:], strict=False):
            worker.tell("put", first, end - first, 1, pictures)
        return busy


def run(
    report: Report, groups: int = GROUPS, producers: Sequence[int] = PRODUCERS, claims: Sequence[int] = CLAIMS
) -> None:
    """Measure bytes and conversion, then groups in, out, and both at once."""
    for pictures in (False, True):
        _convert(report, pictures)
    with ExitStack() as stack:
        server = stack.enter_context(start_server(stack.enter_context(tempfile.TemporaryDirectory(prefix="buffer-"))))
        stage = Stage(server.url, max(producers))
        stack.callback(stage.close)

        def rates(seconds: Callable[..., float], **how: Any) -> dict[str, Value]:
            return _rates(partial(seconds, **how), groups, report.repeats)

        notes = "limit: redis-py and a bare stream, with the same bytes packed beforehand"
        kinds = {"threads of one process": False, "processes": True}
        for kind, processes in kinds.items():
            rows = [{"producers": str(n), **rates(stage.put, producers=n, processes=processes)} for n in producers]
            report.table(f"in, groups/s; producers are {kind}", rows, notes)
        rows = [{"groups a claim": str(n), **rates(stage.take, at_once=n)} for n in claims]
        report.table("out, groups/s; claimed and acknowledged by one consumer", rows, notes)
        step, some = claims[len(claims) // 2], producers[len(producers) // 2]
        for kind, processes in kinds.items():
            how = {"processes": processes, "at_once": step}
            rows = [{"producers": str(n), **rates(stage.flow, producers=n, **how)} for n in producers]
            report.table(f"in and out at once, groups/s; {step} a claim; producers are {kind}", rows, notes)
        threads = {"producers": some, "processes": False, "pictures": True}
        rows = [
            {"way": "in", **rates(stage.put, **threads)},
            {"way": "out", **rates(stage.take, at_once=step, pictures=True)},
            {"way": "in and out at once", **rates(stage.flow, at_once=step, **threads)},
        ]
        report.table(f"with pictures, groups/s; {some} threads, {step} a claim", rows, notes)


def _rates(seconds: Callable[[str, int], float], groups: int, repeats: int) -> dict[str, Value]:
    """Groups a second of every queue, and ours over the others'; queues take turns, the first round is untimed."""
    found: dict[str, list[float]] = {name: [] for name in QUEUES}
    for number in range(1 + repeats):
        for name, kind in QUEUES.items():
            many = max(1, round(kind.share * groups))
            elapsed = seconds(name, many)
            if number:
                found[name].append(many / elapsed)
    rates = {name: statistics.median(values) for name, values in found.items()}
    ours = rates["bicot"]
    over = {f"x {name}": ours / rates[name] for name in ("pickle", "torch.save")}
    return {**rates, **over, "share of limit": ours / rates["limit"]}


def _convert(report: Report, pictures: bool) -> None:
    """Bytes of a group, and microseconds to write and to read them."""
    group = make_group(pictures)
    rows: list[dict[str, Value]] = []
    for name, (dump, load) in CONVERSIONS.items():
        data = dump(group)
        write, read = rate(partial(dump, group)), rate(partial(load, data))
        rows.append({"case": name, "bytes": float(len(data)), "write, us": 1e6 / write, "read, us": 1e6 / read})
    with_pictures = f"PNGs of {PICTURE_BYTES} bytes" if pictures else "no PNGs"
    report.table(f"a group: 8 members, {group.tokens} tokens, {with_pictures}", rows, "one thread")


def _all(workers: Sequence[Worker], *order: object) -> None:
    """All of them do that, and are done."""
    for worker in workers:
        worker.tell(*order)
    _wait(workers)


def _wait(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.wait()


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
