"""A training step (reference, score, backward pass; without the optimizer) beside the step that people run today."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import transformers
from torch.nn.functional import linear

from benchmarks.learner_baseline import plain_step
from benchmarks.report import Report, Value, ratios
from benchmarks.scales import SCALES, Scale, make_model
from benchmarks.tensor_peak import TensorPeak
from benchmarks.timing import alternate, rate
from learner.advantages import GroupAdvantages
from learner.batching import BatchPlan, Row, plan_batch, training_rows
from learner.config import ObjectiveConfig
from learner.mfu import peak_flops
from learner.objective import segment_loss
from policy.janus import Policy, trained_parameters
from policy.prompts import PromptRecord
from policy.scoring import Recompute, Scorer
from policy.tokens import TokenLayout
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup

GUIDANCE = 5.0
MEMBERS = {"tiny": 8, "100m": 2}
"""Members of the group on a CPU, where a plain step of eight would take minutes; on a GPU there are eight."""
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Bench:
    """One group to be trained on, and what scores it: a policy that trains, and a frozen reference."""

    size: Scale
    policy: Policy
    reference: transformers.JanusForConditionalGeneration
    rows: list[Row]
    objective: ObjectiveConfig
    micro_batch_tokens: int

    @classmethod
    def make(cls, scale: str, device: str, dtype: torch.dtype) -> Bench:
        """Random weights and tokens; the reference is the policy with its text embeddings 2% larger."""
        policy = make_model(scale, device, dtype)
        model = policy.model.requires_grad_(False)
        reference = copy.deepcopy(model)
        with torch.no_grad():
            reference.get_input_embeddings().weight.mul_(1.02)  # or the KL and its gradient would be nothing
        for parameter in trained_parameters(model, "language_model").values():
            parameter.requires_grad_(True)
        size, objective = SCALES[scale], ObjectiveConfig()
        members = size.group_size if device == "cuda" else MEMBERS[scale]
        group = _group(size, policy.layout, members)
        advantages = GroupAdvantages(torch.linspace(-1.3, 1.3, members), torch.ones(members, dtype=torch.bool), ())
        rows = training_rows([group], [advantages], objective.distribution, policy.layout)
        return cls(size, policy, reference, rows, objective, MICRO_BATCH_TOKENS[device])

    @property
    def tokens(self) -> int:
        """Completion tokens."""
        return sum(len(row.token_ids) for row in self.rows)

    def plan(self) -> BatchPlan:
        """The micro-batches of the learner."""
        return plan_batch(self.rows, 1, self.micro_batch_tokens)

    def cases(self) -> dict[str, Callable[[], float]]:
        """Steps by name; each adds to the gradients and returns the loss."""
        model, layout = self.policy.model, self.policy.layout
        plain = partial(plain_step, model, self.reference, layout, self.rows, self.objective)
        steps: dict[str, Callable[[], float]] = {
            "plain": partial(plain, len(self.rows)),
            "plain, a row a pass": partial(plain, 1),
        }
        names: dict[str, Recompute] = {"bicot": "nothing", "bicot, selective": "selective", "bicot, layers": "layers"}
        return steps | {name: partial(self._packed_step, recompute) for name, recompute in names.items()}

    def _packed_step(self, recompute: Recompute) -> float:
        """What `LearnerEngine.step` does between its plan and its optimizer."""
        scorer = Scorer(self.policy.model, self.policy.layout, recompute=recompute)
        frozen, plan, total = Scorer(self.reference, self.policy.layout), self.plan(), 0.0
        for batch in plan.micro_batches[0]:
            rows, distribution = batch.score_rows(), self.objective.distribution
            with torch.no_grad():
                before = frozen(rows, distribution)
            scores = scorer(rows, distribution)
            now, then = scores.text or scores.image, before.text or before.image
            assert now is not None and then is not None
            device = now.logprobs.device
            loss, _ = segment_loss(
                now.logprobs, batch.behaviour(device), then.logprobs, now.entropy, batch.advantages(device), 1.0,
                self.objective,
            )  # fmt: skip
            (loss / plan.tokens).backward()
            total += loss.item() / plan.tokens
        return total

    def clear(self) -> None:
        """Set gradients to 0, where there are any."""
        for parameter in self.policy.model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    def flops(self) -> float:
        """What the packed step cannot do without: matrix products, each once, and attention's two."""
        size, model = self.size, self.policy.model
        positions = sum(batch.positions for batch in self.plan().micro_batches[0])
        total = 8.0 * size.layer_parameters * positions  # forward, reference, backward twice
        head = model.model.generation_head
        for row in self.rows:
            passes, tokens = len(row.prompts), len(row.token_ids)
            # Causal scores and values: forward, reference, and five products for two in the backward pass.
            length = row.cost / passes
            total += passes * (2 * 4 + 10) * size.layers * size.hidden * length**2 / 2
            if row.kind.segment == "semantic":
                total += 8.0 * model.lm_head.weight.numel() * tokens
            else:  # frozen, and its gradient is the same for both passes
                total += 2.0 * (2 * passes + 1) * sum(p.numel() for p in head.parameters()) * tokens
        return total


def run(report: Report) -> None:
    """Measure a step in float32 on a CPU, at tiny in bfloat16 too; in bfloat16 on a GPU."""
    dtypes = [torch.bfloat16] if report.device == "cuda" else [torch.float32]
    if report.device == "cpu" and report.scale == "tiny":
        dtypes.append(torch.bfloat16)
    for dtype in dtypes:
        _measure(report, Bench.make(report.scale, report.device, dtype), dtype)


def _measure(report: Report, bench: Bench, dtype: torch.dtype) -> None:
    cases = bench.cases()
    for parameter in bench.policy.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    peaks = {name: _peak(partial(_step, bench, case), report.device) for name, case in cases.items()}
    seconds = alternate(cases, report.repeats, report.device, warm_up=0)
    flops, largest = bench.flops(), max(batch.positions for batch in bench.plan().micro_batches[0])
    limit = flops / _matmul_rate(largest, bench.size, report.device, dtype)
    peak_rate = peak_flops(torch.cuda.get_device_name(), dtype) if report.device == "cuda" else None
    rows: list[dict[str, Value]] = [
        {
            "case": name,
            "step s": seconds[name],
            "tokens/s": bench.tokens / seconds[name],
            "limit s": limit,
            "of limit": limit / seconds[name],
            "MFU": flops / seconds[name] / peak_rate if peak_rate else None,
            "peak GiB": peaks[name] / 2**30,
            "peak / plain": peaks[name] / peaks["plain"],
        }
        for name in cases
    ]
    members = sum(row.kind.segment == "image" for row in bench.rows)
    size = bench.size
    report.table(
        f"Training step at {report.scale}, {str(dtype).removeprefix('torch.')}",
        ratios(rows, "tokens/s", ["plain", "plain, a row a pass"]),
        f"{members} members of one group, prompt {size.prompt_tokens}, CoT {size.cot_tokens} on average, "
        f"{size.image_tokens} image tokens, guidance {GUIDANCE:g}; {bench.micro_batch_tokens} tokens a micro-batch. "
        f"Peak: {'allocated memory' if report.device == 'cuda' else 'tensors'} above weights and gradients.",
    )


def _step(bench: Bench, case: Callable[[], float]) -> None:
    bench.clear()
    loss = case()
    if not math.isfinite(loss):
        raise RuntimeError(f"a step's loss is {loss}")


def _peak(case: Callable[[], None], device: str) -> float:
    """Bytes that a call needs at most above those that are held before it."""
    gc.collect()
    if device == "cpu":
        with TensorPeak() as tensors:
            case()
        return float(tensors.peak)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case()
    return float(torch.cuda.max_memory_allocated() - before)


def _matmul_rate(rows: int, size: Scale, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a linear layer that widens `rows` positions."""
    states = torch.randn(rows, size.hidden, device=device, dtype=dtype)
    weight = torch.randn(size.intermediate, size.hidden, device=device, dtype=dtype)
    with torch.no_grad():
        return 2.0 * rows * weight.numel() * rate(lambda: linear(states, weight), device)


def _group(size: Scale, layout: TokenLayout, members: int) -> TrajectoryGroup:
    """Random tokens. CoTs have half to one and a half of the usual length; a quarter of a prompt is the user's."""
    random = torch.Generator().manual_seed(0)

    def ids(count: int, vocab: int) -> torch.Tensor:
        return torch.randint(8, vocab, (count,), generator=random)

    def around(tokens: int, vocab: int) -> torch.Tensor:
        return -math.log(vocab) + 0.3 * torch.randn(tokens, generator=random)

    asked = torch.cat([torch.tensor([layout.bos]), ids(size.prompt_tokens - 1, 500)])
    user = asked[: size.prompt_tokens // 4]
    made = []
    for number in range(members):
        cot = ids(round(size.cot_tokens * (0.5 + number / max(1, members - 1))), 500)
        image = ids(size.image_tokens, size.image_vocab)
        shown = torch.cat([user, cot, torch.tensor([layout.boi])])
        logprobs = around(len(image), size.image_vocab)
        text = SemanticSegment(asked, cot, around(len(cot), size.text_vocab), 1.0, "stop", 0)
        made.append(Member(number, text, ImageSegment(shown, image, logprobs, logprobs, GUIDANCE, 1.0, 0)))
    record = PromptRecord(prompt="random", task_type="object", nouns=("random",))
    return TrajectoryGroup("0", 0, 0, record, tuple(made))
