"""A script's way: generate, draw, score, train in turn, in one process: `python -m benchmarks.loop_in_turn FOLDER`.

The same engines as the system's, called directly, each with all the cores and all of a step's members at once.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path

import torch

from actors.batch_loop import Engine, Request, Result
from actors.image_actor import Painter
from actors.sampler import SampleRequest
from actors.semantic import SemanticWriter, WriteRequest
from benchmarks.loop import STEPS, WARM_UP, settings
from cluster.prompt_order import PromptOrder
from learner.loading import load_engine
from learner.process_group import join
from policy.janus import load_policy
from policy.lora import BaseWeights
from policy.prompts import load_prompts
from policy.seeds import member_seed
from recipe.config import RunConfig
from transport.rendezvous import Endpoint
from transport.trajectory import Member, TrajectoryGroup


class StagesInTurn:
    """Every engine of a run in this process."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        join(0, 1, Endpoint("127.0.0.1", 0), None, config.learner.deadline_s)
        self.learner = load_engine(config.policy, config.learner, config.steps)
        policy = load_policy(config.policy)
        self.prompts, base = policy.prompts, BaseWeights(config.policy, "cpu")
        self.painter = Painter(policy, config.image, base)
        shape = policy.model.config.text_config
        self.writer = SemanticWriter(shape, policy.layout, config.policy.dtype, config.semantic, base)
        self.rewards = {}
        for service in config.rewards.services:
            module, name = service.target.split(":")
            self.rewards[service.name] = getattr(importlib.import_module(module), name)(**service.options)
        records = load_prompts(config.prompts.train, config.prompts.exclude)
        self.order = PromptOrder(records, config.seed, config.prompts.shuffle)
        self.sync(0)

    def step(self, number: int) -> None:
        """Roll out the groups of step `number`, train on them, and hand the weights over."""
        rollout = self.config.rollout
        visits = [self.order[number * rollout.groups_per_step + i] for i in range(rollout.groups_per_step)]
        members = [(visit, m) for visit in visits for m in range(rollout.group_size)]
        seeds = [member_seed(self.config.seed, visit.prompt.id, visit.visit, m) for visit, m in members]
        texts = [visit.prompt.prompt for visit, _ in members]
        asked = [self.prompts.semantic_prompt(text) for text in texts]
        cots = _drive(self.writer, [WriteRequest(ids, seed) for ids, seed in zip(asked, seeds, strict=True)])
        written = [self.prompts.decode(cot.token_ids) for cot in cots]
        ids = [torch.tensor(self.prompts.image_prompt(t, w)) for t, w in zip(texts, written, strict=True)]
        images = _drive(self.painter, [SampleRequest(p, seed) for p, seed in zip(ids, seeds, strict=True)])
        pictures, records = [image.picture for image in images], [visit.prompt for visit, _ in members]
        scores = {name: reward.score(pictures, records) for name, reward in self.rewards.items()}
        made = [
            Member(seeds[i], cots[i], images[i].segment, written[i], {name: scores[name][i] for name in scores})
            for i in range(len(members))
        ]
        groups = [
            TrajectoryGroup(
                visit.group_id,
                visit.index,
                visit.visit,
                visit.prompt,
                tuple(made[i * rollout.group_size : (i + 1) * rollout.group_size]),
            )
            for i, visit in enumerate(visits)
        ]
        self.learner.step(groups, self.config.rewards.weights)
        self.sync(number + 1)

    def sync(self, version: int) -> None:
        """Copy the learner's weights into both engines."""
        tensors = list(self.learner.trained_tensors())
        self.writer.load(version, tensors)
        self.painter.load(version, tensors)


def _drive(engine: Engine[Request, Result], requests: list[Request]) -> list[Result]:
    """Run `requests`, as many together as the engine takes; results in order."""
    waiting = list(enumerate(requests))
    done: dict[int, Result] = {}
    while len(done) < len(requests):
        joining, waiting = waiting[: engine.free], waiting[engine.free :]
        if joining:
            engine.admit(joining)
        done.update(engine.step())
    return [done[key] for key in range(len(requests))]


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    stages = StagesInTurn(settings())
    seconds = []
    for number in range(WARM_UP + STEPS):
        start = time.monotonic()
        stages.step(number)
        seconds.append(time.monotonic() - start)
    (Path(sys.argv[1]) / "found.json").write_text(json.dumps({"seconds": seconds[WARM_UP:], "idle": {}}))
