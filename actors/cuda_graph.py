"""A step captured as a CUDA graph: hundreds of kernel launches become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class GraphedStep:
    """Runs `step`, which reads and writes tensors that stay where they are, and waits for nothing.

    The first call with some arguments runs as it is, and so sets up what a capture must not; the second is captured;
    it and all later ones are replayed.
    """

    def __init__(self, step: Callable[..., None], pool: Any) -> None:
        """Graphs of one `pool` (`torch.cuda.graph_pool_handle`) share the memory of what they compute on the way."""
        self._step, self._pool = step, pool
        self._ran: set[tuple[int, ...]] = set()
        self._graphs: dict[tuple[int, ...], torch.cuda.CUDAGraph] = {}

    def __call__(self, *sizes: int) -> None:
        """Do the step; each combination of `sizes` is a graph of its own."""
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
        """Some of the tensors are elsewhere now. A pool dies with the last of its graphs, so `pool` is a new one."""
        self._graphs.clear()
        self._pool = pool
