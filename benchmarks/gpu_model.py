"""The parts of `benchmarks gpu` that need the whole policy: sampler, scorer, and the gap between their log-probs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from actors.cached_llama import CachedLlama
from actors.sampler import ImageSampler, SampledImage, SampleRequest
from benchmarks.gpu_memory import held, peak_gib, release, reserved_gib
from benchmarks.report import Report, Value
from benchmarks.sampler import GUIDANCE, image_prompts, least_seconds
from benchmarks.scales import SCALES, Scale, make_model
from benchmarks.timing import timed
from policy.janus import Policy, trained_parameters
from policy.scoring import Distribution, Recompute, Scorer, ScoreRows, SegmentRows

DTYPE = torch.bfloat16
PICTURES = {"tiny": 4, "100m": 48, "1b": 48, "7b": 48}
POSITIONS = {"tiny": 512, "100m": 8192, "1b": 8192, "7b": 8192}
"""Of a pass of the scorer, at most."""


def memory(report: Report) -> None:
    """What the allocator keeps beside what tensors hold, as an image actor comes up."""
    policy = make_model(report.scale, "cuda", DTYPE)
    release("cuda")
    rows = [held("model loaded")]
    CachedLlama(policy.model.model.language_model, 1, 1, DTYPE)
    torch.cuda.reset_peak_memory_stats()
    rows.append(held("projections fused"))
    image_sampler, requests = _sampler(report, policy, GUIDANCE)
    torch.cuda.reset_peak_memory_stats()
    rows.append(held("cache made"))
    image_sampler.admit(list(enumerate(requests)))
    image_sampler.step()
    torch.cuda.synchronize()
    rows.append(held("cache grown, prompts run, a step"))
    release("cuda")
    rows.append(held("free blocks given back"))
    report.table(f"Memory of an image actor at {report.scale}, {len(requests)} pictures", rows)


def sampler(report: Report) -> None:
    """Decode steps launched one kernel at a time and as CUDA graphs, one sampler at a time."""
    policy, device = make_model(report.scale, report.device, DTYPE), report.device
    ways = {"eager": (False, False), "eager, once more": (False, False)}
    if device == "cuda":
        ways |= {"graph": (False, True), "compiled graph": (True, True)}
    rows: list[dict[str, Value]] = []
    drawn: dict[str, _Drawn] = {}
    for way, (compiled, graphed) in ways.items():
        release(device)
        try:
            drawn[way] = _draw(*_sampler(report, policy, GUIDANCE, compiled, graphed), device)
        except Exception as error:  # of what compiles and captures; the other ways are measured all the same
            if not drawn:
                raise  # all are compared with the eager way
            rows.append({"case": way, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:100]})
            continue
        row = drawn[way].row(way) | _equal(drawn["eager"].images, drawn[way].images)
        rows.append(row | {"peak GiB": peak_gib(device), "peak reserved GiB": reserved_gib(device)})
    release(device)
    size, pictures = SCALES[report.scale], PICTURES[report.scale]
    limit_s, bound = least_seconds(size, 2 * pictures, DTYPE, device)
    rows.append({"case": f"limit ({bound})", "ms a step": 1e3 * limit_s / size.image_tokens})
    report.table(
        f"Sampler at {report.scale}, bfloat16, {pictures} pictures with guidance",
        rows,
        "As eager: share of tokens that are the same, and the first of a picture that is not. ms at N: median of the "
        "steps that look at N slots; compiling, captures and first runs count in the whole, not in medians.",
    )
    for way, found in drawn.items():
        if found.kernels:
            report.table(f"One decode step, {way}: kernels that take longest", found.kernels)
    if failed := [way for way in ways if way not in drawn]:
        raise RuntimeError(f"no figures of: {', '.join(failed)}; the table says why")


def gap(report: Report) -> None:
    """How far the learner's log-probs of fresh tokens lie from those that the sampler drew them with."""
    policy, device = make_model(report.scale, report.device, DTYPE), report.device
    rows: list[dict[str, Value]] = []
    for scale in (GUIDANCE, 1.0):
        image_sampler, requests = _sampler(report, policy, scale)
        images = image_sampler.sample(requests)
        del image_sampler
        release(device)
        guided = torch.cat([image.guided_logprobs for image in images])
        conditional = torch.cat([image.conditional_logprobs for image in images])
        most = POSITIONS[report.scale]
        scored, entropy = _scored(policy, requests, images, scale, "guided", most)
        rows.append(_apart(f"guidance {scale:g}, drawn from", scored, guided) | {"entropy": entropy})
        if scale != 1.0:
            scored, entropy = _scored(policy, requests, images, scale, "conditional", most)
            rows.append(_apart(f"guidance {scale:g}, conditional", scored, conditional) | {"entropy": entropy})
            first, second = (_scored(policy, requests, images, scale, "guided", n)[0] for n in (most, most // 2))
            rows.append(_apart(f"guidance {scale:g}, learner in smaller passes", first, second))
    report.table(
        f"Learner's log-probs less the sampler's at {report.scale}, bfloat16, random weights",
        rows,
        "Of the tokens that the sampler drew, before any update. Ratio: e to the difference.",
    )


def scorer(report: Report) -> None:
    """Forward and backward pass of the learner's scorer over one micro-batch, without an optimizer."""
    policy, device, size = make_model(report.scale, report.device, DTYPE), report.device, SCALES[report.scale]
    policy.model.requires_grad_(False)
    for parameter in trained_parameters(policy.model, "language_model").values():
        parameter.requires_grad_(True)
        parameter.grad = torch.zeros_like(parameter)
    batch, positions = _batch(policy, size, POSITIONS[report.scale])
    names: dict[str, Recompute] = {"layers": "layers", "selective": "selective", "nothing": "nothing"}
    rows: list[dict[str, Value]] = []
    for name, recompute in names.items():
        release(device)
        try:
            rows.append(_passes(name, Scorer(policy.model, policy.layout, recompute=recompute), batch, report))
        except torch.cuda.OutOfMemoryError as error:
            rows.append({"case": name, "error": str(error).split(". ")[0]})
    flops = _flops(policy, size, batch, positions)
    for row in rows:
        if isinstance(seconds := row.get("forward, backward s"), float):
            row["TFLOP/s"] = flops / seconds / 1e12
    report.table(
        f"Scorer at {report.scale}, bfloat16, {positions:,} positions of {len(batch.prompts)} pictures with guidance",
        rows,
        f"By what the backward pass computes again. {flops / 1e12:,.0f} TFLOP, each product once, whatever is made "
        "again. Peaks hold weights and gradients.",
    )


@dataclass
class _Drawn:
    """Pictures that were drawn together, and how long it took."""

    images: list[SampledImage]
    prefill_s: tuple[float, float]
    whole_s: float
    ms: dict[int, list[float]]
    kernels: list[dict[str, Value]]

    def row(self, case: str) -> dict[str, Value]:
        steps = sum(map(len, self.ms.values()))
        typical = {span: statistics.median(some) for span, some in self.ms.items()}
        mean = sum(typical[span] * len(some) for span, some in self.ms.items()) / steps
        row: dict[str, Value] = {
            "case": case,
            "prompts, first s": self.prefill_s[0],
            "prompts s": self.prefill_s[1],
            "pictures s": self.whole_s,
            "ms a step": mean,
        }
        return row | {f"ms at {span}": typical[span] for span in sorted(typical)}


def _sampler(
    report: Report, policy: Policy, scale: float, compiled: bool = False, graphed: bool = False
) -> tuple[ImageSampler, list[SampleRequest]]:
    size, pictures = SCALES[report.scale], PICTURES[report.scale]
    prompts = image_prompts(policy, pictures, size.prompt_tokens + size.cot_tokens)
    requests = [SampleRequest(ids, seed) for seed, ids in enumerate(prompts)]
    return ImageSampler(policy, pictures, scale, 1.0, compiled, graphed), requests


def _draw(image_sampler: ImageSampler, requests: Sequence[SampleRequest], device: str) -> _Drawn:
    """Draw all together. The steps' own times are the device's; one step in the middle is profiled, and not timed."""
    joining = list(enumerate(requests))
    first = timed(lambda: image_sampler.admit(joining), device)
    image_sampler.cancel(set(range(len(requests))))
    again = timed(lambda: image_sampler.admit(joining), device)
    clock, number = _Clock(device), len(requests[0].prompt_ids)
    done: dict[int, SampledImage] = {}
    kernels: list[dict[str, Value]] = []
    profiled = number + 450
    start = time.perf_counter()
    while len(done) < len(requests):
        number += 1
        if device == "cuda" and number == profiled:
            torch.cuda.synchronize()
            before = time.perf_counter()
            kernels = _kernels(image_sampler.step)
            start += time.perf_counter() - before
            continue
        clock.start()
        done.update(image_sampler.step())
        clock.stop(-(-number // 128) * 128)
    if device == "cuda":
        torch.cuda.synchronize()
    whole = time.perf_counter() - start
    return _Drawn([done[key] for key in range(len(requests))], (first, again), whole, clock.by_span(), kernels)


class _Clock:
    """Milliseconds of steps on the device's own clock; nothing waits for it."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._marks: list[tuple[int, Callable[[], float]]] = []

    def start(self) -> None:
        if self._cuda:
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        else:
            self._at = time.perf_counter()

    def stop(self, span: int) -> None:
        if self._cuda:
            begun, ended = self._event, torch.cuda.Event(enable_timing=True)
            ended.record()
            self._marks.append((span, lambda: begun.elapsed_time(ended)))
        else:
            taken = 1e3 * (time.perf_counter() - self._at)
            self._marks.append((span, lambda: taken))

    def by_span(self) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for span, milliseconds in self._marks:
            found.setdefault(span, []).append(milliseconds())
        return found


def _kernels(step: Callable[[], object], most: int = 12) -> list[dict[str, Value]]:
    """The kernels of a call that take longest, and all of them together."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    events.sort(key=lambda event: -event.self_device_time_total)
    whole = sum(event.self_device_time_total for event in events)
    rows: list[dict[str, Value]] = [
        {
            "case": event.key[:100],
            "calls": float(event.count),
            "ms": event.self_device_time_total / 1e3,
            "share": event.self_device_time_total / whole,
        }
        for event in events[:most]
    ]
    return [*rows, {"case": "all", "calls": float(sum(e.count for e in events)), "ms": whole / 1e3, "share": 1.0}]


def _equal(expected: Sequence[SampledImage], images: Sequence[SampledImage]) -> dict[str, Value]:
    one, other = (torch.stack([image.token_ids for image in some]) for some in (expected, images))
    same = (one == other).double()
    until = same.cumprod(1).sum(1).min().item()
    return {"as eager": same.mean().item(), "first other token": until if until < one.shape[1] else None}


@torch.no_grad()
def _scored(
    policy: Policy,
    requests: Sequence[SampleRequest],
    images: Sequence[SampledImage],
    scale: float,
    distribution: Distribution,
    positions: int,
) -> tuple[Tensor, float]:
    """The learner's log-probs of all tokens, in passes of so many positions at most, and their mean entropy."""
    each = len(requests[0].prompt_ids) + len(images[0].token_ids)
    together = max(1, positions // (each if scale == 1.0 or distribution == "conditional" else 2 * each))
    module, found, spread = Scorer(policy.model, policy.layout), [], []
    for at in range(0, len(images), together):
        prompts = [request.prompt_ids for request in requests[at : at + together]]
        tokens = [image.token_ids for image in images[at : at + together]]
        scores = module(ScoreRows(image=SegmentRows(prompts, tokens, 1.0, scale)), distribution).image
        found.append(scores.logprobs.cpu())
        spread.append(scores.entropy.cpu())
    return torch.cat(found), torch.cat(spread).mean().item()


def _apart(case: str, one: Tensor, other: Tensor) -> dict[str, Value]:
    difference = (one - other).double()
    ratio = difference.exp()
    return {
        "case": case,
        "standard deviation": difference.std().item(),
        "mean": difference.mean().item(),
        "largest": difference.abs().max().item(),
        "ratio outside [0.8, 1.2]": ((ratio < 0.8) | (ratio > 1.2)).double().mean().item(),
        "tokens": float(len(difference)),
    }


def _batch(policy: Policy, size: Scale, positions: int) -> tuple[SegmentRows, int]:
    """Pictures with guidance that come to at most so many positions, and how many they come to."""
    prompt, tokens = size.prompt_tokens + size.cot_tokens, size.image_tokens
    each = prompt - 1 + 2 * (tokens - 1)
    pictures = max(1, (positions - prompt) // each)
    prompts = image_prompts(policy, pictures, prompt)
    drawn = torch.randint(0, size.image_vocab, (pictures, tokens), generator=torch.Generator().manual_seed(0))
    # Random prompts share their first token, and what is left of them without their words is the same for all.
    return SegmentRows(list(prompts), list(drawn), 1.0, GUIDANCE), pictures * each + prompt


def _passes(name: str, module: Scorer, batch: SegmentRows, report: Report) -> dict[str, Value]:
    """Median seconds of a forward and of a backward pass, and the peak of both."""
    rows, found = ScoreRows(image=batch), []
    for number in range(1 + report.repeats):
        made: list[Tensor] = []

        def forward(made: list[Tensor] = made) -> None:
            made.append(module(rows).image.logprobs.mean())

        forward_s = timed(forward, report.device)
        backward_s = timed(lambda made=made: made.pop().backward(), report.device)  # type: ignore[misc]
        if number:
            found.append((forward_s, backward_s))
    forward_s, backward_s = (statistics.median(some) for some in zip(*found, strict=True))
    return {
        "case": name,
        "forward s": forward_s,
        "backward s": backward_s,
        "forward, backward s": forward_s + backward_s,
        "TFLOP/s": None,
        "peak GiB": peak_gib(report.device),
        "peak reserved GiB": reserved_gib(report.device),
    }


def _flops(policy: Policy, size: Scale, batch: SegmentRows, positions: int) -> float:
    """What the two passes cannot do without: each product once, and attention's scores and values."""
    pictures, tokens, prompt = len(batch.prompts), size.image_tokens, size.prompt_tokens + size.cot_tokens
    attention = 2 * pictures * (4 + 10) * size.layers * size.hidden * (prompt + tokens - 1) ** 2 / 2
    head = sum(parameter.numel() for parameter in policy.model.model.generation_head.parameters())
    # The image head is frozen, and both passes have one gradient: two products forward, one back.
    return 6.0 * size.layer_parameters * positions + attention + 2.0 * 3 * head * pictures * tokens
