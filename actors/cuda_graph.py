"""A step captured as a CUDA graph: hundreds of kernel launches become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class GraphedStep:
    """Runs `step` as a CUDA graph. `step` reads and writes tensors at fixed addresses and never waits for the device.

    The first call with some arguments runs without a graph, because setup must not be captured. The second call is
    captured; it and all later calls replay the graph.
    """

    def __init__(self, step: Callable[..., None], pool: Any) -> None:
        """Graphs of one `pool` (`torch.cuda.graph_pool_handle`) share the memory of intermediate results."""
        self._step, self._pool = step, pool
        self._ran: set[tuple[int, ...]] = set()
        self._graphs: dict[tuple[int, ...], torch.cuda.CUDAGraph] = {}

    def __call__(self, *sizes: int) -> None:
        """Do the step; each combination of `sizes` has its own graph."""
        if sizes not in self._ran:
            self._ran.add(sizes)
            self._step(*sizes)
            return
        if sizes not in self._graphs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._step(*sizes)
            self._graphs[sizes] = graph
        self._graphs[sizes].replay()

    def forget(self, pool: Any) -> None:
        """Drop all graphs: tensors have moved. A pool dies with the last of its graphs, so `pool` is a new one."""
        self._graphs.clear()
        self._pool = pool
