"""Packs rows of tokens into one line without padding. Positions with the same prefix are computed once.

Under causal attention a position's state depends only on the tokens up to it. So a group's common prompt, the
prefixes that its image prompts share, and unconditional prompts need one pass for all their rows. Linear layers see
the line; attention sees rows: each row gets the states of its shared positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "packed"
"""The name by which transformers' models look up `attend`."""


class PrefixTree:
    """A tree of prompts' tokens; a node is a position of the line, and identifies the whole prefix up to it."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        """Different positions so far."""
        return len(self._nodes)

    def add(self, prompt: Iterable[int]) -> list[int]:
        """The positions of a prompt's tokens, known ones and new ones."""
        path, node = [], -1
        for token in prompt:
            node = self._nodes.setdefault((node, token), len(self._nodes))
            path.append(node)
        return path

    def tokens(self) -> list[int]:
        """The token of each position."""
        return [token for _, token in self._nodes]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The places of rows in a line of N positions. R >= N counts positions row by row, shared ones in each row.

    `path` [R] maps row positions to line positions; rows of one length are adjacent. `home` [N] gives, for each line
    position, one index into `path` that maps to it; `copies` [R - N] are all other indices. `bunches` are (rows,
    their length). `ends` [rows + 1] are the rows' bounds in `path`.
    """

    path: Tensor
    home: Tensor
    copies: Tensor
    bunches: tuple[tuple[int, int], ...]
    ends: Tensor

    @classmethod
    def of(cls, paths: Sequence[Tensor], device: torch.device) -> PackedRows:
        """Build it from `paths`: the line positions of each row, in order. Together the paths cover the line."""
        ordered = sorted(paths, key=len)
        path = torch.cat(ordered)
        places = torch.arange(len(path))
        home = torch.full((int(path.max()) + 1,), len(path)).scatter_reduce_(0, path, places, "amin")
        lengths = [len(p) for p in ordered]
        bunches = tuple((rows, length) for length, rows in Counter(lengths).items())
        ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        copies = places[home[path] != places]
        return cls(path.to(device), home.to(device), copies.to(device), bunches, ends.to(device))

    @property
    def longest(self) -> int:
        """The length of the longest row."""
        return self.bunches[-1][1]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row of a line: [1, heads, N, head size] to [1, N, heads, head size].

    Without `packed` it is transformers' own SDPA attention, dropout included; with it there is no dropout.
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    q, k, v = (_ToRows.apply(states.squeeze(0).transpose(0, 1), packed) for states in (query, key, value))
    out = _by_varlen(q, k, v, packed, scaling) if _has_varlen(q) else _in_bunches(q, k, v, packed, scaling)
    return _ToLine.apply(out, packed).unsqueeze(0), None


def _in_bunches(query: Tensor, key: Tensor, value: Tensor, packed: PackedRows, scale: float | None) -> Tensor:
    """Attention [R, heads, head size] of rows of one length at a time."""
    sizes = [rows * length for rows, length in packed.bunches]
    outs = []
    for (rows, length), *parts in zip(packed.bunches, *(t.split(sizes) for t in (query, key, value)), strict=True):
        q, k, v = (part.view(rows, length, *part.shape[1:]).transpose(1, 2) for part in parts)
        out = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        outs.append(out.transpose(1, 2).reshape(rows * length, *query.shape[1:]))
    return torch.cat(outs)


def _by_varlen(query: Tensor, key: Tensor, value: Tensor, packed: PackedRows, scale: float | None) -> Tensor:
    """Attention [R, heads, head size] of all rows in one kernel."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest, shared = packed.ends, packed.longest, query.shape[1] != key.shape[1]
    causal = (-1, 0)
    out = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scale, window_size=causal, enable_gqa=shared
    )
    assert isinstance(out, Tensor)
    return out


def _has_varlen(states: Tensor) -> bool:
    """Whether the kernel supports these tensors; if not, rows go in bunches, as on a CPU."""
    return (
        states.is_cuda
        and states.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(states.device) >= (8, 0)
        and find_spec("torch.nn.attention.varlen") is not None
    )


class _ToRows(torch.autograd.Function):
    """States [N, ...] of the line to those of its rows [R, ...]; gradients of shared positions add up."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, packed: PackedRows) -> Tensor:
        ctx.packed = packed
        return states.index_select(0, packed.path)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), packed = gradients, ctx.packed
        line = gradient.index_select(0, packed.home)
        copies = packed.copies
        if len(copies):  # index_put_ adds in a fixed order, also on a GPU
            line.index_put_((packed.path[copies],), gradient.index_select(0, copies), accumulate=True)
        return line, None


class _ToLine(torch.autograd.Function):
    """States [R, ...] of the rows to those of the line [N, ...]; a shared position's are the same in all its rows."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, packed: PackedRows) -> Tensor:
        ctx.packed = packed
        return states.index_select(0, packed.home)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), packed = gradients, ctx.packed
        rows = gradient.index_select(0, packed.path)
        if len(packed.copies):
            rows.index_fill_(0, packed.copies, 0)
        return rows, None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
