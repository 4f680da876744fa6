"""Teacher-forced log-probs of both segments, at completion positions only.

No [batch, tokens, vocab] tensor of logits ever exists: hidden states of the completion positions go through the head
in chunks, and a chunk's logits are made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from policy.guidance import entropy, guided_logits, log_distribution, token_logprobs
from policy.tokens import TokenLayout, unconditional

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration

Distribution = Literal["conditional", "guided"]


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
    """What one forward pass scores: the text rows, the image rows, or both."""

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

    def __init__(self, model: JanusForConditionalGeneration, layout: TokenLayout, logits_budget: int = 2**25) -> None:
        """`logits_budget` bounds the elements of a chunk of logits (2**25 in float32 are 128 MiB)."""
        super().__init__()
        self.model = model
        self.layout = layout
        self.logits_budget = logits_budget

    def forward(self, rows: ScoreRows, distribution: Distribution = "guided") -> Scores:
        """`distribution` says which of the two an image token's log-prob is taken from."""
        return Scores(
            text=self._score_text(rows.text) if rows.text else None,
            image=self._score_image(rows.image, distribution) if rows.image else None,
        )

    def _score_text(self, rows: SegmentRows) -> TokenScores:
        inputs = [torch.cat([p, c[:-1]]) for p, c in zip(rows.prompts, rows.completions, strict=True)]
        ids = pad_sequence(inputs, batch_first=True, padding_value=self.layout.pad).to(self._device)
        hidden = self._hidden(self.model.get_input_embeddings()(ids), rows)

        def logits(h: Tensor) -> Tensor:
            return self.model.lm_head(h)

        return self._score(logits, [hidden], rows, self.layout.text_vocab)

    def _score_image(self, rows: SegmentRows, distribution: Distribution) -> TokenScores:
        scale = rows.guidance_scale
        paired = distribution == "guided" and scale != 1.0
        prompts = pad_sequence(list(rows.prompts), batch_first=True, padding_value=self.layout.pad)
        prompts = prompts.to(self._device)
        tokens = torch.stack(list(rows.completions)).to(self._device)
        hidden = [self._hidden(self._image_inputs(prompts, tokens, rows.prompts), rows)]
        if paired:
            bare = unconditional(prompts, self.layout)
            hidden.append(self._hidden(self._image_inputs(bare, tokens, rows.prompts), rows))

        def logits(conditional: Tensor, bare: Tensor | None = None) -> Tensor:
            head = self.model.model.generation_head
            if bare is None:
                return head(conditional)
            return guided_logits(head(conditional), head(bare), scale)

        return self._score(logits, hidden, rows, self.layout.image_vocab)

    def _image_inputs(self, prompts: Tensor, tokens: Tensor, lengths: Sequence[Tensor]) -> Tensor:
        """Embeddings [B, max(P) + N - 1, hidden]: each prompt, its image tokens right behind it, then padding."""
        text = self.model.get_input_embeddings()(prompts)
        image = self.model.prepare_embeddings_for_image_generation(tokens[:, :-1])
        rows = [torch.cat([text[i, : len(p)], image[i], text[i, len(p) :]]) for i, p in enumerate(lengths)]
        return torch.stack(rows)

    def _hidden(self, embeddings: Tensor, rows: SegmentRows) -> Tensor:
        """Last hidden states [sum of T_i, hidden] at the positions that predict a completion token.

        Rows are padded on the right, so causal attention alone keeps padding out of every real position.
        """
        positions = torch.arange(embeddings.shape[1], device=embeddings.device).unsqueeze(0)
        states = self.model.model.language_model(
            inputs_embeds=embeddings, position_ids=positions, use_cache=False
        ).last_hidden_state
        pairs = zip(rows.prompts, rows.completions, strict=True)
        return torch.cat([states[i, len(p) - 1 : len(p) - 1 + len(c)] for i, (p, c) in enumerate(pairs)])

    def _score(
        self, logits: Callable[..., Tensor], hidden: list[Tensor], rows: SegmentRows, vocab: int
    ) -> TokenScores:
        targets = torch.cat(list(rows.completions)).to(self._device)
        size = max(1, self.logits_budget // vocab)

        def score(ids: Tensor, *states: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = log_distribution(logits(*states), rows.temperature)
            with torch.no_grad():
                spread = entropy(log_probs)
            return token_logprobs(log_probs, ids), spread

        chunks = list(zip(targets.split(size), *(h.split(size) for h in hidden), strict=True))
        if len(chunks) > 1 and torch.is_grad_enabled():
            scored = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks]
        else:
            scored = [score(*chunk) for chunk in chunks]
        logprobs, spread = (torch.cat(part) for part in zip(*scored, strict=True))
        return TokenScores(logprobs, spread)

    @property
    def _device(self) -> torch.device:
        return self.model.lm_head.weight.device
