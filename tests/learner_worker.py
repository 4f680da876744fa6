"""What a learner rank does in the tests of several ranks: a process of its own runs `ranks_main`."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from learner_cases import WEIGHTS
from torch import Tensor

from learner.config import LearnerConfig
from policy.config import PolicyConfig
from policy.janus import load_policy
from transport.trajectory import TrajectoryGroup


@dataclass(frozen=True)
class Trained:
    """What a run of a few steps ends with, on one rank."""

    tensors: dict[str, Tensor]
    metrics: list[dict[str, float]]


def train(policy: PolicyConfig, config: LearnerConfig, steps: list[list[TrajectoryGroup]]) -> Trained:
    """Train a fresh engine in the present process group."""
    from learner.engine import LearnerEngine

    engine = LearnerEngine(load_policy(policy), policy.trained, config, total_steps=len(steps))
    metrics = [engine.step(groups, WEIGHTS) for groups in steps]
    return Trained({name: tensor.clone() for name, tensor in engine.trained_tensors()}, metrics)


def train_on_ranks(
    ranks: int,
    policy: PolicyConfig,
    configs: list[LearnerConfig],
    steps: list[list[TrajectoryGroup]],
    deadline_s: float = 300,
) -> list[list[Trained]]:
    """`train` with each config, on processes that form one group; [config][rank]."""
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[Any] = context.Queue()
    endpoint: multiprocessing.Queue[Any] = context.Queue()
    workers = [
        context.Process(target=_main, args=(rank, ranks, policy, configs, steps, endpoint, answers))
        for rank in range(ranks)
    ]
    for worker in workers:
        worker.start()
    try:
        found = dict(answers.get(timeout=deadline_s) for _ in workers)
    except queue.Empty:
        raise AssertionError(f"no answer of the ranks within {deadline_s:g} s") from None
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()
    for rank, outcome in found.items():
        assert not isinstance(outcome, str), f"rank {rank}: {outcome}"
    return [[found[rank][number] for rank in range(ranks)] for number in range(len(configs))]


def _main(rank: int, ranks: int, policy: Any, configs: Any, steps: Any, endpoint: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        from learner.process_group import Rendezvous, join

        rendezvous = Rendezvous("127.0.0.1") if rank == 0 else None
        if rendezvous:
            for _ in range(ranks - 1):
                endpoint.put(rendezvous.endpoint)
        join(rank, ranks, rendezvous.endpoint if rendezvous else endpoint.get(timeout=120), rendezvous, 120)
        answers.put((rank, [train(policy, config, steps) for config in configs]))
    except Exception:
        answers.put((rank, traceback.format_exc()))
