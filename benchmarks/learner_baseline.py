"""The training step that people run today, as in T2I-R1's script: the baseline of the learner.

Each segment is padded and has its own pass through the model. Every pass computes the text logits of all its
positions, image tokens included, keeps all hidden states, and takes the log-softmax row by row; so does the reference
policy. Positions are exact, so loss and gradient equal the learner's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from learner.batching import Row
from learner.config import ObjectiveConfig
from policy.tokens import TokenLayout, unconditional


def plain_step(
    model: transformers.JanusForConditionalGeneration,
    reference: transformers.JanusForConditionalGeneration,
    layout: TokenLayout,
    rows: Sequence[Row],
    objective: ObjectiveConfig,
    rows_per_pass: int,
) -> float:
    """Backward pass of the loss of `rows`, `rows_per_pass` of a segment at a time; the loss, a mean over tokens."""
    tokens, total = sum(len(row.token_ids) for row in rows), 0.0
    for segment in ("semantic", "image"):
        of_segment = [row for row in rows if row.kind.segment == segment]
        for start in range(0, len(of_segment), rows_per_pass):
            some = of_segment[start : start + rows_per_pass]
            logprobs = _logprobs(model, layout, some, objective)
            with torch.no_grad():
                frozen = _logprobs(reference, layout, some, objective)
            advantages = torch.tensor([row.advantage for row in some], device=logprobs.device)[:, None]
            behaviour = pad_sequence([row.behaviour for row in some], batch_first=True).to(logprobs.device)
            mask = pad_sequence([torch.ones_like(row.behaviour) for row in some], batch_first=True)
            ratio = torch.exp(logprobs - behaviour)
            clipped = torch.clamp(ratio, 1 - objective.clip_low, 1 + objective.clip_high)
            gap = frozen - logprobs
            each = -torch.min(ratio * advantages, clipped * advantages) + objective.beta * (gap.exp() - gap - 1)
            loss = (each * mask.to(logprobs.device)).sum() / tokens
            loss.backward()
            total += loss.item()
    return total


def _logprobs(
    model: transformers.JanusForConditionalGeneration,
    layout: TokenLayout,
    rows: Sequence[Row],
    objective: ObjectiveConfig,
) -> Tensor:
    """Log-probs [rows, longest completion] of padded rows of one segment; those of padding mean nothing."""
    device, kind = model.lm_head.weight.device, rows[0].kind
    longest = max(len(row.prompt_ids) for row in rows)
    prompts = torch.stack([_left(row.prompt_ids, longest, layout.pad) for row in rows]).to(device)
    real = torch.stack([_left(torch.ones_like(row.prompt_ids), longest, 0) for row in rows]).to(device)
    tokens = pad_sequence([row.token_ids for row in rows], batch_first=True, padding_value=layout.pad).to(device)
    there = pad_sequence([torch.ones_like(row.token_ids) for row in rows], batch_first=True).to(device)
    mask = torch.cat([real, there], dim=1)
    embed = model.get_input_embeddings()
    if kind.segment == "semantic":
        inputs = embed(torch.cat([prompts, tokens], dim=1))
        logits = _forward(model, inputs, mask).logits[:, longest - 1 : -1]
    else:
        image = model.prepare_embeddings_for_image_generation(tokens)
        head = model.model.generation_head

        def image_logits(ids: Tensor) -> Tensor:
            states = _forward(model, torch.cat([embed(ids), image], dim=1), mask).hidden_states[-1]
            return head(states[:, longest - 1 : -1])

        logits = image_logits(prompts)
        if objective.distribution == "guided" and kind.guidance_scale != 1.0:
            bare = image_logits(unconditional(prompts, layout))
            logits = bare.float() + kind.guidance_scale * (logits.float() - bare.float())
    logits = logits.float() / kind.temperature
    by_row = [
        torch.log_softmax(line, dim=-1).gather(-1, ids[:, None])[:, 0]
        for line, ids in zip(logits, tokens, strict=True)
    ]
    return torch.stack(by_row)


def _forward(
    model: transformers.JanusForConditionalGeneration, inputs: Tensor, mask: Tensor
) -> transformers.utils.ModelOutput:
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return model(
        inputs_embeds=inputs, attention_mask=mask, position_ids=positions, output_hidden_states=True, use_cache=False
    )


def _left(ids: Tensor, length: int, value: int) -> Tensor:
    return torch.cat([ids.new_full((length - len(ids),), value), ids])
