"""What the pool tests host in a replica's process."""

from __future__ import annotations

import asyncio
import logging
import os
import time


class Target:
    """Answers, fails, sleeps or dies as it is told."""

    def __init__(self, base: int) -> None:
        self.base = base

    async def add(self, value: int) -> tuple[int, int]:
        """The sum, and who made it."""
        await asyncio.sleep(0)
        return self.base + value, os.getpid()

    async def fail(self) -> None:
        """Raise."""
        raise ValueError("no such thing")

    async def sleep_once(self, marker: str, seconds: float) -> str:
        """Sleep the first time that anybody asks."""
        if os.path.exists(marker):  # noqa: PTH110
            return "awake"
        open(marker, "w").close()  # noqa: PTH123
        await asyncio.sleep(seconds)
        return "slept"

    def die(self, marker: str) -> str:
        """Die the first time that anybody asks."""
        if os.path.exists(marker):  # noqa: PTH110
            return "alive"
        open(marker, "w").close()  # noqa: PTH123
        logging.getLogger("target").error("last words")
        time.sleep(0.1)
        os._exit(3)
