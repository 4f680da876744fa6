"""How people sample Janus today: a plain loop over transformers' growing cache, and transformers' `generate`."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, JanusForConditionalGeneration

from policy.janus import Policy
from policy.tokens import unconditional


@torch.inference_mode()
def plain_loop(policy: Policy, prompts: Tensor, guidance_scale: float, greedy: bool = False) -> Tensor:
    """The loop of Janus' and T2I-R1's scripts: guidance pairs, one Python-driven forward pass a token.

    `prompts` [B, P] end in begin-of-image; gives image tokens [B, N].
    """
    model, layout = policy.model, policy.layout
    rows = torch.stack([prompts, unconditional(prompts, layout)], dim=1).flatten(0, 1)
    embeddings = model.get_input_embeddings()(rows)
    cache = DynamicCache()
    drawn = []
    for _ in range(layout.image_tokens):
        states = model.model.language_model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        logits = model.model.generation_head(states.last_hidden_state[:, -1]).float()
        conditional, bare = logits[0::2], logits[1::2]
        guided = bare + guidance_scale * (conditional - bare)
        tokens = guided.argmax(-1) if greedy else torch.multinomial(guided.softmax(-1), 1).squeeze(1)
        drawn.append(tokens)
        pair = tokens.repeat_interleave(2).unsqueeze(1)
        embeddings = model.prepare_embeddings_for_image_generation(pair)
    return torch.stack(drawn, dim=1)


def transformers_generate(policy: Policy, prompts: Tensor, guidance_scale: float, greedy: bool = False) -> Tensor:
    """`generate(generation_mode="image")`, drawing from the whole distribution; arguments as `plain_loop`."""
    model: JanusForConditionalGeneration = policy.model
    layout = policy.layout
    config = GenerationConfig(
        do_sample=not greedy,
        top_k=0 if not greedy else None,
        guidance_scale=guidance_scale,
        max_length=prompts.shape[1] + layout.image_tokens,
        bos_token_id=layout.bos,
        eos_token_id=layout.eos,
        pad_token_id=layout.pad,
    )
    config.generation_kwargs = {"boi_token_id": layout.boi}
    drawn: Tensor = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        generation_config=config,
        generation_mode="image",
    )
    return drawn
