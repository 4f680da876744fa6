"""A lean Llama forward pass over a preallocated KV cache, on the live weights of transformers' `LlamaModel`.

Every row has its own part of the cache: its tokens fill slots 0, 1, 2, ... in order and without padding, so slot
number and position are equal. An in-place update of the weights takes effect in the next call: projections with the
same input are one matrix, and the model's own parameters are views of it (`actors.fused_linear`). Shapes are static
except for the number of rows and the span of slots of a call; no call waits for the device.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaModel

from actors.fused_linear import FusedLinear

HAS_TRITON = find_spec("triton") is not None
if HAS_TRITON:
    from actors.decode_attention import attend_live

_REPEATABLE = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""cuDNN's kernel for one query and a mask gives different bits at every call."""


def cache_dtype(dtype: torch.dtype, on_cpu: bool, compiled: bool) -> torch.dtype:
    """The cache's number format for a model of `dtype`.

    On a CPU, attention to float32 is twice as fast as to bfloat16, unless compiled code converts the numbers.
    """
    return torch.float32 if on_cpu and not compiled else dtype


class _Layer:
    """A decoder layer with its fused projections."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm, self.post_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = FusedLinear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.gate_up = FusedLinear([mlp.gate_proj, mlp.up_proj])
        self.out, self.down, self.activation = attention.o_proj, mlp.down_proj, mlp.act_fn


class CachedLlama:
    """Prefill and decode for up to `rows` sequences of up to `capacity` tokens."""

    def __init__(
        self, llama: LlamaModel, rows: int, capacity: int, dtype: torch.dtype, compile_layers: bool = False
    ) -> None:
        """The cache is of `dtype`; `compile_layers` has torch compile the decoder layer, once for all layers.

        Raises:
            ValueError: the rotary embedding depends on the sequence's length, so a table cannot hold it.
        """
        config = llama.config
        if config.rope_parameters["rope_type"] not in ("default", "linear", "llama3", "yarn"):
            raise ValueError(
                f"rope type {config.rope_parameters['rope_type']!r} is not supported by the image sampler"
            )
        self._llama = llama
        self._layers = [_Layer(layer) for layer in llama.layers]
        _give_back(llama)
        self._decode_layer = torch.compile(_decode_layer) if compile_layers else _decode_layer
        self._dtype = dtype
        self._rows = rows
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads
        self._head_dim: int = llama.layers[0].self_attn.head_dim
        self._scale: float = llama.layers[0].self_attn.scaling
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self.capacity = 0
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        """Make room for sequences of `capacity` tokens; the cache keeps its contents."""
        weight = self._llama.embed_tokens.weight
        # One spare slot: a view of the whole cache would be compiled again.
        shape = (self._rows, self._kv_heads, capacity + 1, self._head_dim)
        for layer in range(len(self._llama.layers)):
            for cache in (self._keys, self._values):
                fresh = torch.zeros(shape, dtype=self._dtype, device=weight.device)
                if self.capacity:
                    fresh[:, :, : self.capacity] = cache[layer][:, :, : self.capacity]
                    cache[layer] = fresh
                else:
                    cache.append(fresh)
            _give_back(self._llama)
        positions = torch.arange(capacity, device=weight.device).unsqueeze(0)
        cos, sin = self._llama.rotary_emb(weight, positions)
        self._cos, self._sin = cos[0], sin[0]
        self._slots = torch.arange(capacity, device=weight.device)
        self._index = torch.arange(self._rows, device=weight.device)
        self.capacity = capacity

    def prefill(self, token_ids: Tensor, last: Tensor, source: Tensor, rows: Tensor) -> Tensor:
        """Run prompts and put each one's keys and values into one row or several.

        Args:
            token_ids: [prompts, P], padded on the right; the padding does not affect the prompt.
            last: [prompts], position of each prompt's last token.
            source, rows: [n] each; prompt `source[i]` goes to cache row `rows[i]`. `source` rises from 0 and skips
                none.

        Returns:
            [prompts, hidden], the last hidden state of each prompt.
        """
        length = token_ids.shape[1]
        cos, sin = self._cos[:length].unsqueeze(1), self._sin[:length].unsqueeze(1)
        grouped, one_each = self._kv_heads != self._heads, len(rows) == len(token_ids)
        states = self._llama.embed_tokens(token_ids)
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            query, key, value = _project(layer, states, self._heads, self._kv_heads, cos, sin)
            q, k, v = (t.transpose(1, 2) for t in (query, key, value))
            keys[rows, :, :length] = (k if one_each else k[source]).to(self._dtype)
            values[rows, :, :length] = (v if one_each else v[source]).to(self._dtype)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self._scale, enable_gqa=grouped)
            states = _finish(layer, states, out.transpose(1, 2))
        states = states[torch.arange(len(last), device=last.device), last]
        return self._llama.norm(states)

    def decode(self, embeddings: Tensor, positions: Tensor, span: int) -> Tensor:
        """One token for each of the first R rows.

        Args:
            embeddings: [R, hidden] of the tokens at `positions` [R].
            span: number of slots that attention reads; larger than every position.

        Returns:
            [R, hidden], the last hidden states.
        """
        count = len(positions)
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        visible = self._slots[:span] <= positions.unsqueeze(1)
        mask = torch.zeros(visible.shape, dtype=embeddings.dtype, device=embeddings.device)
        mask = mask.masked_fill(~visible, float("-inf")).unsqueeze(1)
        index, states = self._index[:count], embeddings
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            states = self._decode_layer(
                layer, states, keys, values, index, positions, cos, sin, mask, self._heads, self._scale
            )
        return self._llama.norm(states)

    def refresh(self) -> bool:
        """Fuse projections again whose parameters somebody moved to other memory.

        Returns whether there were any.
        """
        fused = [linear.refresh() for layer in self._layers for linear in (layer.qkv, layer.gate_up)]
        if any(fused):
            _give_back(self._llama)
        return any(fused)


def _give_back(llama: LlamaModel) -> None:
    """Return free blocks to the GPU: no later allocation fits their sizes, and others may share the GPU."""
    if llama.device.type == "cuda":
        torch.cuda.empty_cache()


def _decode_layer(
    layer: _Layer,
    states: Tensor,
    keys: Tensor,
    values: Tensor,
    index: Tensor,
    positions: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    heads: int,
    scale: float,
) -> Tensor:
    """One layer, a token of each row; `states` [R, hidden], `mask` [R, 1, span], caches [rows, heads, slots, d]."""
    count, span, kv_heads = len(states), mask.shape[2], keys.shape[1]
    query, key, value = _project(layer, states, heads, kv_heads, cos, sin)
    keys[index, :, positions] = key.to(keys.dtype)
    values[index, :, positions] = value.to(values.dtype)
    # Heads that share keys are adjacent, so grouped-query attention is the same product.
    q = query.reshape(count, kv_heads, heads // kv_heads, -1)
    if HAS_TRITON and states.is_cuda and query.shape[-1] in (32, 64, 128, 256):
        out = attend_live(query, keys, values, positions, scale)
    else:
        out = _attend(q, keys[:count, :, :span], values[:count, :, :span], mask.unsqueeze(1), scale)
    return _finish(layer, states, out.reshape(count, heads, -1))


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of one position: `query` [R, kv_heads, n, d] to `keys` and `values` [R, kv_heads, span, d].

    Its time is the time to read the cache. torch's CPU kernels are made for many queries. This function is written so
    that torch's compiler generates code that reads at full memory bandwidth; in float32 it uses matrix products.
    """
    if keys.device.type != "cpu":
        with sdpa_kernel(_REPEATABLE):
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    q, bias = query.float(), mask.float()
    if torch.compiler.is_compiling():
        scores = (q.unsqueeze(3) * keys.float().unsqueeze(2)).sum(-1) * scale + bias
        return (scores.softmax(-1).unsqueeze(4) * values.float().unsqueeze(2)).sum(3).to(query.dtype)
    rows, span = keys.shape[0] * keys.shape[1], keys.shape[2]
    k, v = keys.float().flatten(0, 1), values.float().flatten(0, 1)
    bias = bias.expand(*keys.shape[:2], 1, span).reshape(rows, 1, span)
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v).view_as(query).to(query.dtype)


def _project(
    layer: _Layer, states: Tensor, heads: int, kv_heads: int, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key (both rotated) and value [..., heads, d] of `states` [..., hidden]."""
    joined = layer.qkv(layer.input_norm(states)).unflatten(-1, (heads + 2 * kv_heads, -1))
    rotated = _rotate(joined[..., : heads + kv_heads, :], cos, sin)
    return rotated[..., :heads, :], rotated[..., heads:, :], joined[..., heads + kv_heads :, :]


def _finish(layer: _Layer, states: Tensor, attended: Tensor) -> Tensor:
    """The rest of the layer; `attended` [..., heads, d]."""
    states = states + layer.out(attended.flatten(-2))
    gate, up = layer.gate_up(layer.post_norm(states)).chunk(2, dim=-1)
    return states + layer.down(layer.activation(gate) * up)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of `x` [..., heads, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin
