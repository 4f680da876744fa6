"""The learner's engine: BiCoT-GRPO steps on this rank's share of a batch, through DeepSpeed.

The update depends only on the groups, not on ranks, ZeRO stage, micro-batches or packing: the loss is summed over
tokens and divided by the number of tokens of the whole batch, and DeepSpeed's mean over ranks is undone.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import JanusForConditionalGeneration

from learner.advantages import GroupAdvantages, group_advantages
from learner.batching import SEGMENTS, BatchPlan, MicroBatch, Segment, plan_batch, training_rows
from learner.config import LearnerConfig
from learner.export import export_policy
from learner.mfu import MfuMeter
from learner.objective import SegmentStats, segment_loss
from learner.scorer import SegmentScorer, heads
from learner.zero import frozen_engine, gathered, train_engine, whole_shape
from policy.janus import Policy, trained_parameters
from policy.lora import SCALE
from policy.scoring import ScoreRows
from policy.tokens import TokenLayout
from transport.trajectory import TrajectoryGroup

if TYPE_CHECKING:
    from learner.adapter import TrainedAdapter

log = logging.getLogger(__name__)


class LearnerEngine:
    """One rank of the learner; the default process group must exist (`learner.process_group.join`).

    Every method not marked otherwise is a collective: all ranks call it, with the same arguments.
    """

    def __init__(
        self,
        policy: Policy,
        trained: str,
        config: LearnerConfig,
        total_steps: int,
        reference: JanusForConditionalGeneration | None = None,
    ) -> None:
        """Take over `policy` (its weights become this engine's); `trained` as in `PolicyConfig.trained`.

        `reference` is the frozen reference policy. It is needed if ranks hold only parts of the weights
        (`learner.loading`); otherwise the engine copies the present weights of `policy`.
        """
        self.config = config
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._policy = policy
        self._trained = trained
        self._seconds: dict[str, float] = defaultdict(float)
        model = policy.model.requires_grad_(False)
        # Make the reference first: it must see neither DeepSpeed's hooks nor gradients.
        if reference is None and needs_reference(config):
            reference = self._copy(model)
        self._adapter = _adapter(model, trained, config)
        parameters = self._parameters()
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        beta = config.objective.beta
        self._mfu = MfuMeter(model.model.language_model.layers, beta > 0, config.peak_tflops)
        scorer = SegmentScorer(model, policy.layout, recompute=config.recompute)
        self.engine = train_engine(scorer, list(parameters.values()), heads(scorer), config, total_steps)
        self._reference: torch.nn.Module | None = None
        if reference is not None:
            frozen = SegmentScorer(reference, policy.layout)
            self._reference = frozen_engine(frozen, heads(frozen), config)
        size = sum(math.prod(shape) for shape in self.trained_shapes().values())
        kept = "a frozen reference policy" if config.objective.beta > 0 else "no reference policy"
        log.info(
            "rank %d of %d trains %d parameters under ZeRO %d, with %s",
            self.rank,
            self.ranks,
            size,
            config.zero_stage,
            kept,
        )

    @property
    def device(self) -> torch.device:
        """Where this rank computes; not a collective."""
        return torch.device(self.engine.device)

    @property
    def layout(self) -> TokenLayout:
        """The token ids that its policy knows; not a collective."""
        return self._policy.layout

    @property
    def steps(self) -> int:
        """Optimizer steps done; not a collective."""
        return int(self.engine.global_steps)

    def step(self, groups: Sequence[TrajectoryGroup], reward_weights: Mapping[str, float]) -> dict[str, float]:
        """One optimizer step on `groups`, in the order of their `index`.

        If no member trains, no step is taken; then `tokens` in the metrics is 0.

        Returns:
            Metrics of the whole batch, the same on every rank; `seconds/...` and `mfu` are this rank's.
        """
        self._seconds.clear()
        objective = self.config.objective
        groups = sorted(groups, key=lambda group: group.index)
        scored = [group_advantages([m.rewards for m in g.members], reward_weights, objective) for g in groups]
        rows = training_rows(groups, scored, objective.distribution, self._policy.layout)
        plan = plan_batch(rows, self.ranks, self.config.micro_batch_tokens)
        totals = {segment: SegmentStats.empty(self.device) for segment in SEGMENTS}
        learning_rate = float(self.engine.get_lr()[0])
        for batch in plan.micro_batches[self.rank]:
            stats = self._backward(batch, plan.tokens)
            if not batch.filler:
                totals[batch.kind.segment] += stats
        if plan.tokens:
            with self._clock("optimizer"):
                self.engine.step()
        else:
            log.warning("no member of %d groups has the rewards to train on: no step taken", len(groups))
        return self._metrics(plan, scored, self._sum_over_ranks(totals), learning_rate)

    def _backward(self, batch: MicroBatch, batch_tokens: int) -> SegmentStats:
        """Forward and backward pass of one micro-batch; DeepSpeed accumulates the gradient."""
        objective = self.config.objective
        rows, segment = batch.score_rows(), batch.kind.segment
        reference = self._reference_logprobs(rows)
        with self._clock("score"):
            logprobs, entropy = self.engine(rows, objective.distribution)
            loss, stats = segment_loss(
                logprobs,
                batch.behaviour(self.device),
                reference,
                entropy,
                batch.advantages(self.device),
                objective.semantic_weight if segment == "semantic" else objective.image_weight,
                objective,
            )
        with self._clock("backward"):
            # DeepSpeed takes the mean over ranks; the factor `ranks` turns it into the objective's sum.
            scale = 0.0 if batch.filler else self.ranks / batch_tokens
            self.engine.backward(loss * scale, scale_wrt_gas=False)
        return stats

    def _reference_logprobs(self, rows: ScoreRows) -> Tensor | None:
        """Log-probs [sum of T_i] of the reference policy: a separate model, or this one without its adapter."""
        objective = self.config.objective
        if objective.beta == 0:
            return None
        with self._clock("reference"), torch.no_grad():
            if self._adapter is not None:
                with self._adapter.off():
                    logprobs, _ = self.engine.module(rows, objective.distribution)
            else:
                assert self._reference is not None
                logprobs, _ = self._reference(rows, objective.distribution)
        return logprobs

    def _sum_over_ranks(self, totals: dict[Segment, SegmentStats]) -> dict[Segment, SegmentStats]:
        fields = SegmentStats.__slots__
        sums = torch.stack([torch.stack([getattr(totals[s], f) for f in fields]) for s in SEGMENTS])
        maxima = sums.clone()
        dist.all_reduce(sums)
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
        merged = torch.where(torch.tensor([f.endswith("_max") for f in fields], device=sums.device), maxima, sums)
        return {segment: SegmentStats(*values) for segment, values in zip(SEGMENTS, merged.cpu(), strict=True)}

    def _metrics(
        self,
        plan: BatchPlan,
        scored: Sequence[GroupAdvantages],
        totals: dict[Segment, SegmentStats],
        learning_rate: float,
    ) -> dict[str, float]:
        metrics = {
            "tokens": float(plan.tokens),
            "loss": sum(stats.loss.item() for stats in totals.values()) / max(1, plan.tokens),
            "kl": sum(stats.reference_kl.item() for stats in totals.values()) / max(1, plan.tokens),
            "lr": learning_rate,
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0) if plan.tokens else 0.0,
            "groups": float(len(scored)),
            "groups_masked": float(sum(group.scored == 0 for group in scored)),
            "members": float(sum(len(group.mask) for group in scored)),
            "members_masked": float(sum(len(group.mask) - group.scored for group in scored)),
            "groups_without_signal": float(sum(group.scored > 0 and not group.advantages.any() for group in scored)),
            "micro_batches": float(len(plan.micro_batches[self.rank])),
        }
        for segment, stats in totals.items():
            if stats.tokens:
                metrics |= {f"{name}/{segment}": value for name, value in stats.per_token().items()}
        metrics |= self._mfu.measure(plan, sum(self._seconds.values()))
        return metrics | {f"seconds/{phase}": seconds for phase, seconds in self._seconds.items()}

    def trained_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """`(name, whole tensor)` of every trained tensor, in the model's order, for publication.

        The names are those of the state dict, or those of an adapter (`policy.lora`), whose scale comes first.
        Under ZeRO 3 every rank must iterate to the end; a tensor is whole only until the next one is requested.
        """
        if self._adapter is not None:
            yield SCALE, torch.tensor([self._adapter.scale], dtype=torch.float64)
        for name, parameter in self._parameters().items():
            with gathered([parameter], self.config.zero_stage):
                yield name, parameter.detach()

    def trained_shapes(self) -> dict[str, list[int]]:
        """Shape of every trained tensor, by its published name; not a collective."""
        return {name: list(whole_shape(parameter)) for name, parameter in self._parameters().items()}

    def trained_layout(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, number format and shape of every tensor of `trained_tensors`, in its order; not a collective."""
        scale = [(SCALE, torch.float64, (1,))] if self._adapter is not None else []
        return [*scale, *((n, p.dtype, tuple(whole_shape(p))) for n, p in self._parameters().items())]

    def export(self, folder: str | Path) -> None:
        """Write the policy as a checkpoint in the Hugging Face layout, which `load_policy` reads; rank 0 writes.

        An adapter is merged into the weights, and also written in peft's format, in the folder `adapter`.
        """
        export_policy(self._policy, self._adapter, self.config.zero_stage, Path(folder))

    @property
    def adapter_scale(self) -> float | None:
        """The factor of the adapter's product; None without an adapter. Not a collective."""
        return self._adapter.scale if self._adapter is not None else None

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        if self._adapter is not None:
            return self._adapter.parameters()
        return trained_parameters(self._policy.model, self._trained)

    def _copy(self, model: JanusForConditionalGeneration) -> JanusForConditionalGeneration:
        """A frozen copy; it shares untrained tensors with `model`, unless ZeRO 3 will partition them."""
        trains = {id(value) for value in trained_parameters(model, self._trained).values()}
        shared = {} if self.config.zero_stage == 3 else {id(p): p for p in model.parameters() if id(p) not in trains}
        return copy.deepcopy(model, shared).eval()

    @contextmanager
    def _clock(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds[phase] += time.perf_counter() - started


def needs_reference(config: LearnerConfig) -> bool:
    """Whether the reference policy needs its own model; with an adapter it is the model with the adapter off."""
    return config.objective.beta > 0 and config.lora is None


def _adapter(model: JanusForConditionalGeneration, trained: str, config: LearnerConfig) -> TrainedAdapter | None:
    if config.lora is None:
        return None
    if trained != "language_model":
        raise ValueError(f"learner.lora trains the language model alone: policy.trained must not be {trained}")
    from learner.adapter import TrainedAdapter  # peft takes seconds to import

    return TrainedAdapter(model, config.lora)
