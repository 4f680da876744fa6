"""The parts of `benchmarks gpu` that need no policy: the card's ceilings, its bus, attention alone, the detector."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_memory import peak_gib, release
from benchmarks.report import Report, Value
from benchmarks.rewards import grounding_dino, noise
from benchmarks.sampler import matmul_flops, read_bandwidth
from benchmarks.scales import SCALES
from benchmarks.timing import alternate, rate
from policy.prompts import PromptRecord
from rewards.models.grounding_dino import MOST_PICTURES, GroundingDino
from rewards.models.tiny import write_tiny_grounding_dino

DTYPE = torch.bfloat16
ROWS = {"tiny": 8, "100m": 96, "1b": 96, "7b": 96}
GB = 10**9


def ceilings(report: Report) -> None:
    """The rates that nothing on this card goes beyond."""
    side = 8192 if report.device == "cuda" else 512
    flops = matmul_flops(side, side, side, DTYPE, report.device)
    report.table(
        "Ceilings",
        [
            {"case": f"bfloat16 product, {side} a side", "TFLOP/s": flops / 1e12},
            {"case": "reading 512 MiB", "GB/s": read_bandwidth(report.device) / GB},
        ],
    )


def pcie(report: Report) -> None:
    """A gigabyte from the host to the card and back, in memory that may be paged out and in memory that may not."""
    there = torch.empty(GB, dtype=torch.uint8, device="cuda")
    rows: list[dict[str, Value]] = []
    for name, here in {
        "pageable": torch.ones(GB, dtype=torch.uint8),
        "pinned": torch.ones(GB, dtype=torch.uint8).pin_memory(),
    }.items():
        to_card = rate(lambda here=here: there.copy_(here, non_blocking=True), "cuda")  # type: ignore[misc]
        to_host = rate(lambda here=here: here.copy_(there, non_blocking=True), "cuda")  # type: ignore[misc]
        rows.append({"case": name, "to the card GB/s": to_card, "to the host GB/s": to_host})
    report.table("1 GB over the bus", rows)


def attention(report: Report) -> None:
    """One query of each row to its live slots, which are a twelfth more in some rows than in others."""
    size, device, rows = SCALES[report.scale], report.device, ROWS[report.scale]
    typical = size.prompt_tokens + size.cot_tokens + 0.8 * size.image_tokens
    lengths = torch.linspace(0.94 * typical, 1.06 * typical, rows, device=device).to(torch.int32)
    span = -(-int(lengths.max()) // 128) * 128
    found = []
    for way, (by_head, attend) in _ways(device).items():
        release(device)
        cache = Cache(rows, size.heads, span + 129, size.hidden // size.heads, size.layers, by_head, device)
        query = torch.randn(rows, size.heads, 1, cache.head, dtype=DTYPE, device=device)
        try:
            found.append(_attended(way, attend, cache, query, lengths, span, report))
        except Exception as error:  # a kernel that does not take these says so in as many ways as there are kernels
            found.append({"case": way, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:100]})
        del cache
    report.table(
        f"Attention of one position, {rows} rows, {size.layers} layers of {size.heads} heads, "
        f"{int(lengths.min())} to {int(lengths.max())} live slots",
        found,
        f"GB/s: live slots' keys and values over the time. Masked ways read {span} slots of each row. "
        "Error: relative, to float32. Same bits: share of the layers that a second call gives the same.",
    )


class Cache:
    """Random keys and values of some layers: [rows, heads, slots, head], however they lie in memory."""

    def __init__(self, rows: int, heads: int, slots: int, head: int, layers: int, by_head: bool, device: str) -> None:
        """`by_head` puts a head's slots side by side, as the sampler does; else a slot's heads are."""
        shape = (rows, heads, slots, head) if by_head else (rows, slots, heads, head)
        self.head, self.slots, self.layers = head, slots, layers
        made = [torch.randn(shape, dtype=DTYPE, device=device) for _ in range(2 * layers)]
        views = made if by_head else [states.transpose(1, 2) for states in made]
        self.keys, self.values = views[:layers], views[layers:]


Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""[rows, heads, 1, head] of a query, keys, values, live slots of each row, and a span that covers them."""


def _ways(device: str) -> dict[str, tuple[bool, Attend]]:
    ways: dict[str, tuple[bool, Attend]] = {
        "masked SDPA": (True, _masked),
        "masked SDPA, not cuDNN's": (True, _masked_repeatable),
    }
    if device == "cuda":
        from actors.decode_attention import attend_live

        def triton_live(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, span: int) -> Tensor:
            return attend_live(query.squeeze(2), keys, values, lengths - 1, query.shape[-1] ** -0.5)

        ways["varlen_attn's kernel, seqused_k"] = (False, _flash_live)
        ways["live slots, as the sampler"] = (True, triton_live)
    return ways


def _attended(
    way: str, attend: Attend, cache: Cache, query: Tensor, lengths: Tensor, span: int, report: Report
) -> dict[str, Value]:
    pairs = list(zip(cache.keys, cache.values, strict=True))

    def all_layers() -> None:
        for keys, values in pairs:
            attend(query, keys, values, lengths, span)

    first = [attend(query, keys, values, lengths, span) for keys, values in pairs]
    again = [attend(query, keys, values, lengths, span) for keys, values in pairs]
    repeated = sum(map(torch.equal, first, again)) / len(pairs)
    out = first[0].float().view(query.shape)
    expected = _masked(query.float(), cache.keys[0].float(), cache.values[0].float(), lengths, span)
    seconds = 1 / rate(all_layers, report.device)
    live = 2 * int(lengths.sum()) * query.shape[1] * cache.head * DTYPE.itemsize * cache.layers
    return {
        "case": way,
        "ms a step": 1e3 * seconds,
        "GB/s": live / seconds / GB,
        "error": ((out - expected).norm() / expected.norm()).item(),
        "same bits": repeated,
    }


def _masked(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, span: int) -> Tensor:
    seen = torch.arange(span, device=query.device) < lengths.unsqueeze(1)
    mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(~seen, float("-inf"))
    return scaled_dot_product_attention(query, keys[:, :, :span], values[:, :, :span], attn_mask=mask[:, None, None])


def _masked_repeatable(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, span: int) -> Tensor:
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return _masked(query, keys, values, lengths, span)


def _flash_live(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, span: int) -> Tensor:
    """What `varlen_attn` calls. Its own `seqused_k` is younger than the kernel's."""
    rows, heads, slots, head = keys.shape
    at_query = torch.arange(rows + 1, dtype=torch.int32, device=query.device)
    out = torch.ops.aten._flash_attention_forward(
        query.reshape(rows, heads, head),
        keys.transpose(1, 2).reshape(rows * slots, heads, head),
        values.transpose(1, 2).reshape(rows * slots, heads, head),
        at_query, at_query * slots, 1, span, 0.0, False, return_debug_mask=False, seqused_k=lengths,
    )[0]  # fmt: skip
    return out.view(rows, heads, 1, head)


def detector(report: Report) -> None:
    """Grounding DINO of its true size with random weights, in float32 and with products in bfloat16."""
    device = report.device
    record = PromptRecord(prompt="a red circle and a blue square", task_type="color", nouns=("circle", "square"))
    pictures, prompts = noise(MOST_PICTURES), [record] * MOST_PICTURES
    with tempfile.TemporaryDirectory(prefix="bicot-detector-") as folder:
        if report.scale == "tiny":
            options: dict[str, Any] = {"checkpoint": str(write_tiny_grounding_dino(Path(folder)))}
        else:
            options = grounding_dino(Path(folder) / "dino")
        reward = GroundingDino(**options)
    rows: list[dict[str, Value]] = []
    for way, cast in {"float32": False, "float32, bfloat16 by autocast": True}.items():
        release(device)
        with torch.autocast(device, DTYPE, enabled=cast):
            rows.append(_detected(way, reward, pictures, prompts, report))
    release(device)
    reward._model.to(DTYPE)
    try:
        rows.append(_detected("bfloat16", reward, pictures, prompts, report))
    except RuntimeError as error:
        rows.append({"case": "bfloat16", "failed": str(error).splitlines()[0][:100]})
    report.table(
        f"Detector, {MOST_PICTURES} pictures in a pass",
        rows,
        "Seconds with pixels made on the host, and of the pass alone. Whether scores agree takes trained weights.",
    )


def _detected(
    way: str, reward: GroundingDino, pictures: Any, prompts: list[PromptRecord], report: Report
) -> dict[str, Value]:
    asked: list[tuple[Any, ...]] = []
    forward, dtype = reward._forward, reward._model.dtype

    def spy(pixels: Tensor, captions: Any) -> tuple[Tensor, Tensor]:
        asked[:] = [(pixels.to(dtype), captions)]
        probabilities, boxes = forward(pixels.to(dtype), captions)
        return probabilities.float(), boxes.float()

    reward._forward = spy  # type: ignore[method-assign]
    try:
        cases = {"all": lambda: reward.detect(pictures, prompts), "pass": lambda: forward(*asked[0])}
        cases["all"]()
        seconds = alternate(cases, report.repeats, report.device, warm_up=1)
    finally:
        reward._forward = forward  # type: ignore[method-assign]
    return {
        "case": way,
        "pixels": "x".join(map(str, asked[0][0].shape)),
        "s": seconds["all"],
        "pass s": seconds["pass"],
        "peak GiB": peak_gib(report.device),
    }
