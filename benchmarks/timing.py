"""Fair timing: cases take turns, so that a slower machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def alternate(
    cases: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu", warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of each case over `repeats` rounds; a round runs every case once, in order.

    `warm_up` rounds go before, untimed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(warm_up + repeats):
        for name, case in cases.items():
            elapsed = timed(case, device)
            if number >= warm_up:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(case: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that one call takes, the device's work included."""
    _settle(device)
    start = time.perf_counter()
    case()
    _settle(device)
    return time.perf_counter() - start


def rate(case: Callable[[], object], device: str = "cpu", at_least_s: float = 0.2) -> float:
    """Calls a second, over as many calls as fill `at_least_s` seconds, and the best of three tries."""
    case()
    calls = max(1, round(at_least_s / max(1e-6, timed(case, device))))

    def many() -> None:
        for _ in range(calls):
            case()

    return max(calls / timed(many, device) for _ in range(3))


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
