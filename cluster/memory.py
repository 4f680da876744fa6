"""How much memory a run's processes need, from the checkpoint's config alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import JanusConfig, JanusForConditionalGeneration

from cluster.config import RunConfig
from policy.janus import is_trained

_BYTES = {"float32": 4, "bfloat16": 2}
_ADAM_BYTES = 8
"""Two float32 moments a trained parameter."""


def estimate(config: RunConfig, janus: JanusConfig) -> Iterator[str]:
    """One line a pool: GiB of weights, caches, gradients and optimizer of one process. Activations come on top."""
    total, trained = count_parameters(janus, config.policy.trained)
    width = _BYTES[config.policy.dtype]
    text = janus.text_config
    head = text.hidden_size // text.num_attention_heads
    slot = 2 * text.num_hidden_layers * text.num_key_value_heads * head * width
    yield f"policy: {total / 1e6:,.1f} M parameters, {trained / 1e6:,.1f} M of them trained"
    if config.semantic.enabled:
        yield f"semantic: weights {_gib(trained * width)}, KV cache {config.semantic.kv_cache_gb:g} GiB on CPU"
    tokens = janus.vq_config.num_patches**2 + config.semantic.max_prompt_tokens + config.semantic.max_tokens
    cache = config.image.batch_size * (2 if config.image.guidance_scale != 1 else 1) * tokens * slot
    yield f"image: weights {_gib(total * width)}, KV cache up to {_gib(cache)}"
    learner, share = config.learner, config.learner.ranks
    reference = trained * width if learner.objective.beta else 0
    weights = total * width / (share if learner.zero_stage == 3 else 1)
    gradients = trained * width / (share if learner.zero_stage >= 2 else 1)
    # Half-precision training keeps float32 master weights beside the moments.
    optimizer = trained * (_ADAM_BYTES + (4 if width == 2 else 0)) / (share if learner.zero_stage >= 1 else 1)
    yield (
        f"learner: weights {_gib(weights)}, reference {_gib(reference)}, gradients {_gib(gradients)}, "
        f"optimizer {_gib(optimizer)}"
    )


def count_parameters(janus: JanusConfig, trained: str) -> tuple[int, int]:
    """All parameters of the model and those that train, counted without making any."""
    with torch.device("meta"):
        model = JanusForConditionalGeneration(janus)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if is_trained(name, trained))


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB"
