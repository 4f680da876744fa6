"""A lean Llama forward pass over a preallocated KV cache, on the live weights of transformers' `LlamaModel`.

Every row stands in the cache on its own: its tokens fill slots 0, 1, 2, ... in order, with no padding between them,
so slot number and position are the same. Nothing of the weights is copied: an update in place shows in the next call.
Shapes are static except for the number of rows and the span of slots that a call names; no call waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaModel

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class CachedLlama:
    """Prefill and decode for up to `rows` sequences of up to `capacity` tokens."""

    def __init__(self, llama: LlamaModel, rows: int, capacity: int) -> None:
        """
        Raises:
            ValueError: the rotary embedding depends on the length of the sequence, which a table cannot hold.
        """
        config = llama.config
        if config.rope_parameters["rope_type"] not in ("default", "linear", "llama3", "yarn"):
            raise ValueError(
                f"rope type {config.rope_parameters['rope_type']!r} is not supported by the image sampler"
            )
        self._llama = llama
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
        """Make room for sequences of `capacity` tokens, keeping what the cache holds."""
        weight = self._llama.embed_tokens.weight
        shape = (self._rows, self._kv_heads, capacity, self._head_dim)
        for layer in range(len(self._llama.layers)):
            for cache in (self._keys, self._values):
                fresh = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
                if self.capacity:
                    fresh[:, :, : self.capacity] = cache[layer]
                    cache[layer] = fresh
                else:
                    cache.append(fresh)
        positions = torch.arange(capacity, device=weight.device).unsqueeze(0)
        cos, sin = self._llama.rotary_emb(weight, positions)
        self._cos, self._sin = cos[0], sin[0]
        self._slots = torch.arange(capacity, device=weight.device)
        self._index = torch.arange(self._rows, device=weight.device)
        self.capacity = capacity

    def prefill(self, token_ids: Tensor, last: Tensor, source: Tensor, rows: Tensor) -> Tensor:
        """Run prompts and put each one's keys and values into one row or several.

        Args:
            token_ids: [prompts, P], padded on the right; what stands behind a prompt cannot reach it.
            last: [prompts], position of each prompt's last token.
            source, rows: [n] each; prompt `source[i]` goes to cache row `rows[i]`.

        Returns:
            [prompts, hidden], the last hidden state of each prompt.
        """
        length = token_ids.shape[1]
        cos, sin = self._cos[:length].unsqueeze(1), self._sin[:length].unsqueeze(1)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (t.transpose(1, 2) for t in (_rotate(query, cos, sin), _rotate(key, cos, sin), value))
            self._keys[layer][rows, :, :length] = k[source]
            self._values[layer][rows, :, :length] = v[source]
            grouped = self._kv_heads != self._heads
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self._scale, enable_gqa=grouped)
            return out.transpose(1, 2)

        states = self._forward(self._llama.embed_tokens(token_ids), attend)
        return states[torch.arange(len(last), device=last.device), last]

    def decode(self, embeddings: Tensor, positions: Tensor, span: int) -> Tensor:
        """One token for each of the first R rows.

        Args:
            embeddings: [R, hidden] of the tokens, which stand at `positions` [R].
            span: slots that are looked at, more than every position.

        Returns:
            [R, hidden], the last hidden states.
        """
        count = len(positions)
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        index = self._index[:count]
        visible = self._slots[:span] <= positions.unsqueeze(1)
        mask = torch.zeros(visible.shape, dtype=embeddings.dtype, device=embeddings.device)
        mask = mask.masked_fill(~visible, float("-inf"))
        mask = mask.unsqueeze(1).expand(count, self._kv_heads, span).reshape(count * self._kv_heads, 1, span)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys[index, :, positions] = _rotate(key, cos, sin)
            values[index, :, positions] = value
            # Heads that share keys stand side by side, so that grouped-query attention is the same product.
            q = _rotate(query, cos, sin).reshape(count * self._kv_heads, -1, self._head_dim)
            k = keys[:count].flatten(0, 1)[:, :span]
            v = values[:count].flatten(0, 1)[:, :span]
            if q.dtype == torch.float32:
                scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=self._scale)
                out = torch.bmm(scores.softmax(-1), v)
            else:
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self._scale)
            return out.view(count, self._heads, self._head_dim)

        return self._forward(embeddings, attend)

    def _forward(self, states: Tensor, attend: Attend) -> Tensor:
        """`states` [..., hidden]; `attend` takes and gives [..., heads, head_dim]."""
        for number, layer in enumerate(self._llama.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(states)
            heads = (*normed.shape[:-1], -1, self._head_dim)
            out = attend(
                number,
                attention.q_proj(normed).view(heads),
                attention.k_proj(normed).view(heads),
                attention.v_proj(normed).view(heads),
            )
            states = states + attention.o_proj(out.flatten(-2))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return self._llama.norm(states)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of `x` [..., heads, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin
