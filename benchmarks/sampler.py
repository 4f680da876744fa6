"""The image sampler against the usual ways to sample Janus, and against the hardware's limit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from actors.sampler import ImageSampler, SampleRequest
from benchmarks.gpu_memory import release
from benchmarks.report import Report, Value, ratios
from benchmarks.sampler_baselines import plain_loop, transformers_generate
from benchmarks.scales import SCALES, Scale, make_model
from benchmarks.timing import alternate, rate, timed
from policy.janus import Policy

GUIDANCE = 5.0
_PICTURES = {"tiny": 64, "100m": 16, "1b": 64, "7b": 64}
_BASELINES = ("plain loop", "transformers generate")


def run(report: Report) -> None:
    """Measure each number format of the device."""
    for dtype in (torch.float32, torch.bfloat16) if report.device == "cpu" else (torch.bfloat16,):
        _measure(report, dtype)


def _measure(report: Report, dtype: torch.dtype) -> None:
    size, pictures, device = SCALES[report.scale], _PICTURES[report.scale], report.device
    policy = make_model(report.scale, device, dtype)
    prompts = image_prompts(policy, pictures, size.prompt_tokens + size.cot_tokens)
    cases = sampling_cases(policy, prompts)
    if device == "cuda":  # which may hold one sampler at a time: all of a case, then all of the next
        first_s: dict[str, float] = {}
        seconds: dict[str, float] = {}
        for name, case in cases.items():
            first_s[name] = timed(case, device)
            seconds |= alternate({name: case}, report.repeats, device, warm_up=0)
        compile_s = first_s["bicot, compiled"]
    else:
        compile_s = timed(cases["bicot, compiled"])
        seconds = alternate(cases, report.repeats, warm_up=1 if report.scale == "tiny" else 0)
    limit_s, bound = least_seconds(size, 2 * pictures, dtype, device)
    rows: list[dict[str, Value]] = [
        {
            "case": case,
            "pictures/s": pictures / taken,
            "image tokens/s": pictures * size.image_tokens / taken,
            "ms a step": 1e3 * taken / size.image_tokens,
            "share of the limit": limit_s / taken,
        }
        for case, taken in seconds.items()
    ]
    limit: dict[str, Value] = {
        "case": f"limit ({bound})",
        "pictures/s": pictures / limit_s,
        "image tokens/s": pictures * size.image_tokens / limit_s,
        "ms a step": 1e3 * limit_s / size.image_tokens,
    }
    report.table(
        f"Image sampler, {str(dtype).removeprefix('torch.')}, {pictures} pictures together, guidance pairs",
        [*ratios(rows, "pictures/s", _BASELINES), limit],
        f"{size.prompt_tokens + size.cot_tokens} prompt tokens and {size.image_tokens} image tokens a picture. Ours "
        f"also records both log-probs of every token. The first pictures of the compiled one took {compile_s:.0f} s.",
    )


def image_prompts(policy: Policy, pictures: int, tokens: int) -> Tensor:
    """Prompts [pictures, tokens] of random words, all different, which end in begin-of-image."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, min(400, policy.layout.text_vocab), (pictures, tokens), generator=generator)
    ids[:, 0], ids[:, -1] = policy.layout.bos, policy.layout.boi
    return ids


def sampling_cases(policy: Policy, prompts: Tensor, greedy: bool = False) -> dict[str, Callable[[], Tensor]]:
    """Ways to draw pictures for `prompts`, by name; each gives image tokens [pictures, N].

    A GPU holds the sampler of the way that was called last, and no other.
    """
    requests = [SampleRequest(ids, seed) for seed, ids in enumerate(prompts)]
    ways = {"bicot": (False, False), "bicot, compiled": (True, False)}
    if policy.model.device.type == "cuda":
        ways |= {"bicot, graph": (False, True), "bicot, compiled graph": (True, True)}
    temperature, on_gpu = 0.0 if greedy else 1.0, policy.model.device.type == "cuda"
    made: dict[str, ImageSampler] = {}

    def make(name: str) -> None:
        compiled, graphed = ways[name]
        made[name] = ImageSampler(policy, len(prompts), GUIDANCE, temperature, compiled, graphed)

    def ours(name: str) -> Tensor:
        if name not in made:
            let_go()
            make(name)
        return torch.stack([image.token_ids for image in made[name].sample(requests)])

    def let_go() -> None:
        if made and on_gpu:
            made.clear()
            release("cuda")

    def theirs(draw: Callable[..., Tensor]) -> Tensor:
        let_go()
        return draw(policy, at_device, GUIDANCE, greedy)

    at_device = prompts.to(policy.model.device)
    if not on_gpu:
        for name in ways:
            make(name)
    cases: dict[str, Callable[[], Tensor]] = {name: partial(ours, name) for name in ways}
    cases["plain loop"] = partial(theirs, plain_loop)
    cases["transformers generate"] = partial(theirs, transformers_generate)
    return cases


def least_seconds(size: Scale, rows: int, dtype: torch.dtype, device: str) -> tuple[float, str]:
    """Seconds below which no sampler can draw the pictures of `rows` rows, and what holds it up.

    The larger of two times: a step's arithmetic at the rate that this machine multiplies matrices of its shape with,
    and its bytes (weights, keys and values, once a step) at the rate that this machine reads memory with.
    """
    weights = size.layer_parameters + 2 * size.hidden * size.hidden + size.hidden * size.image_vocab
    prompt = size.prompt_tokens + size.cot_tokens
    slots = size.image_tokens * prompt + size.image_tokens * (size.image_tokens - 1) // 2  # seen by a row, all steps
    cached = rows * slots * 2 * size.layers * size.hidden
    flops = 2 * rows * weights * size.image_tokens + 4 * rows * slots * size.layers * size.hidden
    flops_s = flops / matmul_flops(rows, size.hidden, size.intermediate, dtype, device)
    read_s = (weights * size.image_tokens + cached) * dtype.itemsize / read_bandwidth(device)
    return max((flops_s, "arithmetic"), (read_s, "memory"))


def matmul_flops(rows: int, inner: int, outer: int, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of [rows, inner] x [inner, outer], over as many weights as a model that does not fit the cache has."""
    count = max(1, min(16, 2**28 // (inner * outer)))
    x = torch.randn(rows, inner, dtype=dtype, device=device)
    weights = [torch.randn(outer, inner, dtype=dtype, device=device) for _ in range(count)]

    def multiply() -> None:
        for weight in weights:
            F.linear(x, weight)

    return 2 * rows * inner * outer * count * rate(multiply, device)


def read_bandwidth(device: str) -> float:
    """Bytes a second that a sum over 512 MiB reads."""
    values = torch.ones(2**27, device=device)
    return values.nbytes * rate(values.sum, device)
