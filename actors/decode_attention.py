"""Attention of one position to the live slots of a cache, as a Triton kernel.

Most of the decoding time is the reading of keys and values. torch's masked kernels read every slot of the mask, live
or not; this kernel stops at each row's last live slot.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_SLOTS, _WARPS = 16, 1
"""Number of slots that a program reads at a time, and its number of warps."""


@triton.jit
def _live_slots(  # type: ignore[no-untyped-def]
    query, keys, values, positions, out, scale, row_stride, head_stride, slot_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, HEAD)
    at = (row * HEADS + head) * HEAD + column
    q = (tl.load(query + at).to(tl.float32) * scale).to(tl.float32)
    live = tl.load(positions + row) + 1
    start = row * row_stride + (head // GROUP) * head_stride
    most = float("-inf")
    total = 0.0
    mixed = tl.zeros([HEAD], dtype=tl.float32)
    for first in range(0, live, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        seen = slot < live
        places = start + slot[:, None] * slot_stride + column[None, :]
        k = tl.load(keys + places, mask=seen[:, None], other=0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(k * q[None, :], axis=1), float("-inf"))
        higher = tl.maximum(most, tl.max(score, axis=0))
        weight = tl.exp(score - higher)
        keep = tl.exp(most - higher)
        v = tl.load(values + places, mask=seen[:, None], other=0.0).to(tl.float32)
        mixed = mixed * keep + tl.sum(v * weight[:, None], axis=0)
        total = total * keep + tl.sum(weight, axis=0)
        most = higher
    tl.store(out + at, (mixed / total).to(out.dtype.element_ty))


def attend_live(query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
    """[R, heads, d] of `query` [R, heads, d] to slots 0 to `positions` [R] of caches [rows, kv heads, slots, d].

    A head's size is a power of two; both caches have the same memory layout. No row's arithmetic depends on
    another's.
    """
    rows, heads, head = query.shape
    query, out = query.contiguous(), torch.empty_like(query, memory_format=torch.contiguous_format)
    row_stride, head_stride, slot_stride, _ = keys.stride()
    _live_slots[(rows, heads)](
        query, keys, values, positions, out, scale, row_stride, head_stride, slot_stride,
        HEADS=heads, GROUP=heads // keys.shape[1], HEAD=head, SLOTS=_SLOTS, num_warps=_WARPS,
    )  # fmt: skip
    return out
