"""Rendezvous of the learner ranks, with a deadline in every collective."""

from __future__ import annotations

import importlib
import ipaddress
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from transport.rendezvous import Endpoint, Rendezvous


class RendezvousError(RuntimeError):
    """The ranks did not find one another within their deadline."""


def join(rank: int, ranks: int, endpoint: Endpoint, rendezvous: Rendezvous | None, deadline_s: float) -> None:
    """Join the default process group: gloo on CPUs, NCCL (and gloo for CPU tensors) on GPUs.

    `rendezvous` is rank 0's. A single rank needs no socket at all. Every collective fails after `deadline_s` seconds.
    A process may join again after it left: DeepSpeed then forgets the groups that it had before.

    Raises:
        RendezvousError: a rank is missing when `deadline_s` has passed.
    """
    timeout = timedelta(seconds=deadline_s)
    if remembered := sys.modules.get("deepspeed.utils.groups"):
        importlib.reload(remembered)
    if ipaddress.ip_address(endpoint.host).is_loopback and os.uname().sysname == "Linux":
        # Without a given interface gloo listens on the address of the host's name.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store = HashStore() if ranks == 1 else _store(rank, ranks, endpoint, rendezvous, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
    except RuntimeError as error:
        raise RendezvousError(
            f"learner rank {rank} of {ranks} did not meet the others at {endpoint.host}:{endpoint.port} "
            f"within {deadline_s:g} s: {error}"
        ) from error


def _store(rank: int, ranks: int, endpoint: Endpoint, rendezvous: Rendezvous | None, timeout: timedelta) -> TCPStore:
    if rank == 0 and rendezvous is None:
        raise ValueError("rank 0 brings the rendezvous socket")
    return TCPStore(
        endpoint.host,
        endpoint.port,
        ranks,
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=rendezvous.detach() if rank == 0 and rendezvous else None,
    )
