"""Memory of one GPU: what tensors hold, what torch's allocator keeps for them, and what is gone from the card."""

from __future__ import annotations

import gc

import torch

from benchmarks.report import Value

GIB = 2**30


def held(case: str) -> dict[str, Value]:
    """A row of a table: memory now, and at most since `forget_peak`, in GiB."""
    free, total = torch.cuda.mem_get_info()
    return {
        "case": case,
        "allocated GiB": torch.cuda.memory_allocated() / GIB,
        "reserved GiB": torch.cuda.memory_reserved() / GIB,
        "card in use GiB": (total - free) / GIB,
        "peak allocated GiB": torch.cuda.max_memory_allocated() / GIB,
        "peak reserved GiB": torch.cuda.max_memory_reserved() / GIB,
    }


def release(device: str) -> None:
    """Give back what nothing holds any more, to the card, too; peaks count anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float | None:
    """The most that tensors held since `release`; None on a CPU."""
    return torch.cuda.max_memory_allocated() / GIB if device == "cuda" else None


def reserved_gib(device: str) -> float | None:
    """The most that the allocator held since `release`; None on a CPU."""
    return torch.cuda.max_memory_reserved() / GIB if device == "cuda" else None
