"""What a learner rank does in the tests of several ranks: a process of its own runs `ranks_main`."""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from learner_cases import WEIGHTS
from torch import Tensor

from learner.config import LearnerConfig
from policy.config import PolicyConfig
from transport.trajectory import TrajectoryGroup


@dataclass(frozen=True)
class Trained:
    """What a run of a few steps ends with, on one rank."""

    tensors: dict[str, Tensor]
    metrics: list[dict[str, float]]


def train(policy: PolicyConfig, config: LearnerConfig, steps: list[list[TrajectoryGroup]]) -> Trained:
    """Train a fresh engine in the present process group."""
    from learner.loading import load_engine

    engine = load_engine(policy, config, total_steps=len(steps))
    metrics = [engine.step(groups, WEIGHTS) for groups in steps]
    return Trained({name: tensor.clone() for name, tensor in engine.trained_tensors()}, metrics)


def train_and_resume(
    policy: PolicyConfig, config: LearnerConfig, steps: list[list[TrajectoryGroup]], folder: Path
) -> tuple[Trained, Trained]:
    """Train in one go, and with an end and a resume half-way: the two must not differ."""
    from learner import checkpoint
    from learner.loading import load_engine

    half = len(steps) // 2
    first = load_engine(policy, config, total_steps=len(steps))
    for groups in steps[:half]:
        first.step(groups, WEIGHTS)
    path = checkpoint.save(first, folder, keep=1)
    second = load_engine(policy, config, total_steps=len(steps))
    checkpoint.load(second, path)
    assert second.steps == half
    metrics = [second.step(groups, WEIGHTS) for groups in steps[half:]]
    resumed = Trained({name: tensor.clone() for name, tensor in second.trained_tensors()}, metrics)
    return train(policy, config, steps), resumed


def on_ranks(ranks: int, jobs: list[tuple[Any, ...]], deadline_s: float = 400) -> list[list[Any]]:
    """Run jobs (a function of this module and its arguments) on processes that form one group; [job][rank]."""
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[Any] = context.Queue()
    endpoint: multiprocessing.Queue[Any] = context.Queue()
    workers = [
        context.Process(target=_main, args=(rank, ranks, pickle.dumps(jobs), endpoint, answers))
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
    results = [pickle.loads(found[rank]) for rank in range(ranks)]
    return [[results[rank][number] for rank in range(ranks)] for number in range(len(jobs))]


def _main(rank: int, ranks: int, jobs: bytes, endpoint: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        from learner.process_group import join
        from transport.rendezvous import Rendezvous

        rendezvous = Rendezvous("127.0.0.1") if rank == 0 else None
        if rendezvous:
            for _ in range(ranks - 1):
                endpoint.put(rendezvous.endpoint)
        join(rank, ranks, rendezvous.endpoint if rendezvous else endpoint.get(timeout=240), rendezvous, 240)
        results = [job(*arguments) for job, *arguments in pickle.loads(jobs)]
        # Pickled here: a tensor in a queue would be lost with the process that put it.
        answers.put((rank, pickle.dumps(results)))
    except Exception:
        answers.put((rank, traceback.format_exc()))


def parts_of_parameters(policy: PolicyConfig, config: LearnerConfig) -> list[dict[str, tuple[int, int, int]]]:
    """Of a fresh engine under ZeRO 3, and of its reference policy: elements of each parameter, of this rank's part of
    it, and of what the rank holds beside its part."""
    from learner.loading import load_engine

    engine = load_engine(policy, config, total_steps=1)
    modules = [engine.engine.module, *([engine._reference] if engine._reference is not None else [])]
    return [
        {name: (p.ds_numel, p.ds_tensor.numel(), p.data.numel()) for name, p in module.named_parameters()}
        for module in modules
    ]
