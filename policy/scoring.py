"""Teacher-forced log-probs of both segments, at completion positions only.

All rows of a pass, conditional and unconditional, are packed into one line without padding (`policy.packing`). No
tensor of all logits ever exists: the hidden states of the completion positions go through the head in chunks, and the
backward pass recomputes a chunk's logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from policy.guidance import entropy, guided_logits, log_distribution, token_logprobs
from policy.packing import ATTENTION, PackedRows, PrefixTree
from policy.tokens import TokenLayout, unconditional

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration

Distribution = Literal["conditional", "guided"]
Recompute = Literal["nothing", "selective", "layers"]
"""What the backward pass recomputes of the decoder layers: nothing; all but the results of attention and its
projections; or everything except each layer's input."""


@dataclass(frozen=True, slots=True)
class SegmentRows:
    """Rows of one segment, each on its own line: prompt [P_i], completion [T_i] (both int64, any lengths).

    `guidance_scale` is 1 for text. All rows of one batch share temperature and guidance scale.
    """

    prompts: Sequence[Tensor]
    completions: Sequence[Tensor]
    temperature: float = 1.0
    guidance_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """The input of one forward pass: text rows, image rows, or both."""

    text: SegmentRows | None = None
    image: SegmentRows | None = None


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-prob and entropy (nats) of every completion token, row after row: [sum of T_i] each."""

    logprobs: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a `ScoreRows`, part for part."""

    text: TokenScores | None
    image: TokenScores | None


class Scorer(nn.Module):
    """Scores completions under a Janus model; the one module that a training engine wraps."""

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        layout: TokenLayout,
        logits_budget: int = 2**23,
        recompute: Recompute = "nothing",
    ) -> None:
        """`logits_budget` bounds the elements of a chunk of logits (2**23 in float32 are 32 MiB).

        The model's attention becomes `policy.packing.attend`; outside this scorer it acts as SDPA.
        """
        super().__init__()
        self.model = model
        self.layout = layout
        self.logits_budget = logits_budget
        self.recompute = recompute
        model.model.language_model.config._attn_implementation = ATTENTION

    def forward(self, rows: ScoreRows, distribution: Distribution = "guided") -> Scores:
        """`distribution` selects the distribution for the log-probs of image tokens."""
        line = _Line(rows, distribution, self.layout)
        states = self._states(line)
        return Scores(
            text=self._score_text(states, line, rows.text) if rows.text else None,
            image=self._score_image(states, line, rows.image) if rows.image else None,
        )

    def _states(self, line: _Line) -> Tensor:
        """Last hidden states [N, hidden] of the line."""
        device, language_model = self._device, self.model.model.language_model
        parts = [self.model.get_input_embeddings()(line.text_ids.to(device))]
        if len(line.image_ids):
            image = self.model.prepare_embeddings_for_image_generation(line.image_ids.to(device)[None])[0]
            parts += [image] * line.image_copies
        states = torch.cat(parts)[None]
        rotary = language_model.rotary_emb(states, position_ids=line.positions.to(device)[None])
        packed = PackedRows.of(line.paths, device)
        kept: dict[str, Any] = {}
        if self.recompute == "selective":
            kept["context_fn"] = partial(_keep_attention, language_model.config.intermediate_size)
        for layer in language_model.layers:
            run = layer
            if self.recompute != "nothing" and torch.is_grad_enabled():
                run = partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False, **kept)
            states = run(states, position_embeddings=rotary, packed=packed)
        return language_model.norm(states).squeeze(0)

    def _score_text(self, states: Tensor, line: _Line, rows: SegmentRows) -> TokenScores:
        return self._score(self.model.lm_head, [states[line.text.to(self._device)]], rows)

    def _score_image(self, states: Tensor, line: _Line, rows: SegmentRows) -> TokenScores:
        head = self.model.model.generation_head
        hidden = [states[places.to(self._device)] for places in line.image]
        return self._score(head.vision_head, [head.activation_fn(head.proj_out(h)) for h in hidden], rows)

    def _score(self, head: nn.Linear, hidden: list[Tensor], rows: SegmentRows) -> TokenScores:
        """`hidden` holds the conditional states [sum of T_i, hidden], and the unconditional ones for guidance."""
        targets = torch.cat(list(rows.completions)).to(self._device)
        size = max(1, self.logits_budget // head.out_features)
        scores = _ChunkedScores.apply(
            targets, rows.temperature, rows.guidance_scale, size, head.weight, head.bias, *hidden
        )
        return TokenScores(*scores)

    @property
    def _device(self) -> torch.device:
        return self.model.lm_head.weight.device


class _Line:
    """The rows of a pass as one line: a tree of prompts, then text completions, then image tokens.

    `text_ids` and `image_ids` are the embedded ids. The image ids occur `image_copies` times in the line, with and
    without their prompt. `positions` [N] count from each row's beginning, `paths` lead each row through the line.
    `text` and `image` (conditional, unconditional) are the places that predict completion tokens, row after row.
    """

    def __init__(self, rows: ScoreRows, distribution: Distribution, layout: TokenLayout) -> None:
        tree = PrefixTree()
        text, image = rows.text, rows.image
        asked = [tree.add(prompt.tolist()) for prompt in text.prompts] if text else []
        shown = [[tree.add(prompt.tolist()) for prompt in image.prompts]] if image else []
        if image and distribution == "guided" and image.guidance_scale != 1.0:
            shown.append([tree.add(unconditional(prompt, layout).tolist()) for prompt in image.prompts])
        written = [completion[:-1] for completion in text.completions] if text else []
        drawn = [completion[:-1] for completion in image.completions] if image else []
        self.text_ids = torch.cat([torch.tensor(tree.tokens()), *written])
        self.image_ids = torch.cat(drawn) if drawn else torch.zeros(0, dtype=torch.int64)
        self.image_copies = len(shown)
        self.paths: list[Tensor] = []
        end = len(tree)
        end, self.text = self._extend(asked, written, end)
        self.image = []
        for prompts in shown:
            end, places = self._extend(prompts, drawn, end)
            self.image.append(places)
        self.positions = torch.empty(end, dtype=torch.int64)
        for path in self.paths:
            self.positions[path] = torch.arange(len(path))

    def _extend(self, prompts: Sequence[list[int]], tails: Sequence[Tensor], end: int) -> tuple[int, Tensor]:
        """Append `tails` to their prompts, from place `end` on; returns the new end and the predicting places."""
        predicting = []
        for prompt, tail in zip(prompts, tails, strict=True):
            path = torch.cat([torch.tensor(prompt), torch.arange(end, end + len(tail))])
            end += len(tail)
            self.paths.append(path)
            predicting.append(path[len(prompt) - 1 :])
        return end, torch.cat(predicting) if predicting else torch.zeros(0, dtype=torch.int64)


class _ChunkedScores(torch.autograd.Function):
    """Log-probs of drawn tokens and entropies, [n] each, from conditional and maybe unconditional states [n, hidden].

    `size` rows at a time are multiplied by the head's last matrix, and again in the backward pass, which accumulates
    the matrix's gradient in place. Memory holds the logits of one chunk. Distributions are those of
    `policy.guidance`.
    """

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, temperature: float, scale: float, size: int, weight: Tensor, bias: Tensor | None,
        *states: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.settings = temperature, scale, size
        ctx.save_for_backward(ids, weight, bias, *states)
        scores = []
        for chosen, *some in zip(ids.split(size), *(s.split(size) for s in states), strict=True):
            log_probs = _log_probs(some, weight, bias, temperature, scale)
            scores.append((token_logprobs(log_probs, chosen), entropy(log_probs)))
        logprobs, spread = (torch.cat(part) for part in zip(*scores, strict=True))
        ctx.mark_non_differentiable(spread)
        return logprobs, spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ids, weight, bias, *states = ctx.saved_tensors
        temperature, scale, size = ctx.settings
        shares = (scale, 1 - scale) if len(states) == 2 else (1.0,)
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[4] else None
        by_bias = torch.zeros_like(bias) if ctx.needs_input_grad[5] else None
        by_states = [torch.empty_like(s) for s in states]
        chunks = zip(
            ids.split(size), gradients[0].split(size),
            zip(*(s.split(size) for s in states), strict=True), zip(*(g.split(size) for g in by_states), strict=True),
            strict=True,
        )  # fmt: skip
        for chosen, gradient, some, outs in chunks:
            slope = gradient.unsqueeze(-1) / temperature
            by_logits = _log_probs(some, weight, bias, temperature, scale).exp_().mul_(-slope)
            by_logits = by_logits.scatter_add_(-1, chosen.unsqueeze(-1), slope).to(weight.dtype)
            toward = by_logits @ weight
            for out, share in zip(outs, shares, strict=True):
                torch.mul(toward, share, out=out)
            if by_weight is not None:
                mixed = sum(share * state for share, state in zip(shares, some, strict=True))
                by_weight.addmm_(by_logits.t(), mixed)
            if by_bias is not None:
                by_bias += by_logits.sum(0)
        return None, None, None, None, by_weight, by_bias, *by_states


def _log_probs(
    states: Sequence[Tensor], weight: Tensor, bias: Tensor | None, temperature: float, scale: float
) -> Tensor:
    """Log-probabilities [n, vocab] of the sampling distribution."""
    logits, *bare = (linear(s, weight, bias) for s in states)
    return log_distribution(guided_logits(logits, bare[0], scale) if bare else logits, temperature)


_ATTENTION = {
    getattr(namespace, name).default
    for namespace, names in (
        (
            torch.ops.aten,
            ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
             "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
        ),
        (torch.ops.torch_attn, ("_varlen_attn",)),
    )
    for name in names
    if hasattr(namespace, name)
}  # fmt: skip
_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}


def _keep_attention(inner: int) -> tuple[Any, Any]:
    """Contexts of a layer's checkpoint that keep the results of attention and of its projections.

    The results of the MLP (its matrices have a side of `inner`) are larger, and are recomputed.
    """

    def policy(_: Any, op: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
        keep = op in _ATTENTION or (op in _PRODUCTS and inner not in inputs[-1].shape)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
