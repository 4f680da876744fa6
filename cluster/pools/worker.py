"""The process of one replica: hosts an object of a lower room, and writes its log into the run folder."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.util

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to(path: str | Path) -> None:
    """Send this process's stdout, stderr and log lines to a file, the output of libraries and crashes included."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    faulthandler.enable(sys.__stderr__ or sys.stderr)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr, force=True)
    logging.captureWarnings(True)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Import without the garbage collector: it finds nothing, and takes a tenth of the time of large imports."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Worker:
    """A Ray actor around one object; `call` runs one method at a time."""

    def __init__(self, target: str, log: str, arguments: dict[str, Any]) -> None:
        """Make the object that `target` ("module:Class") names; `log` is this process's log file."""
        log_to(log)
        module, name = target.split(":")
        logging.getLogger(__name__).info("process %d starts %s", os.getpid(), target)
        with collector_paused():
            made = getattr(importlib.import_module(module), name)
        self._object = made(**arguments)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Run a method of the object."""
        return getattr(self._object, method)(*args, **kwargs)

    def pid(self) -> int:
        """The process's id on its own machine."""
        return os.getpid()

    def node(self) -> str:
        """The address of its machine."""
        return str(ray.util.get_node_ip_address())


class ConcurrentWorker:
    """A Ray actor around one object with coroutine methods: calls of several groups run in parallel."""

    def __init__(self, target: str, log: str, arguments: dict[str, Any]) -> None:
        """As `Worker`."""
        self._worker = Worker(target, log, arguments)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plain-methods")

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Run a method of the object: coroutines on the event loop, plain methods one at a time beside it."""
        if inspect.iscoroutinefunction(getattr(self._worker._object, method)):
            return await self._worker.call(method, *args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: self._worker.call(method, *args, **kwargs))

    async def pid(self) -> int:
        """The process's id on its own machine."""
        return os.getpid()
