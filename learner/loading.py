"""Loads the engine from a checkpoint. Under ZeRO 3 a rank never holds more than its part and one tensor."""

from __future__ import annotations

import torch
from transformers import JanusForConditionalGeneration

from learner.config import LearnerConfig
from learner.engine import LearnerEngine, needs_reference
from learner.zero import fill, partitioned
from policy.checkpoint import Checkpoint
from policy.config import PolicyConfig
from policy.janus import empty_model, load_policy


def load_engine(policy: PolicyConfig, config: LearnerConfig, total_steps: int) -> LearnerEngine:
    """Load the policy, and the reference policy if there is one; a collective of the default process group.

    Raises:
        CheckpointError: the policy's checkpoint cannot be used.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.zero_stage != 3:
        return LearnerEngine(load_policy(policy, device), policy.trained, config, total_steps)

    def load(checkpoint: Checkpoint, dtype: torch.dtype, device: str | torch.device) -> JanusForConditionalGeneration:
        return _partitioned_model(checkpoint, dtype, device, config)

    reference = load_policy(policy, device, load).model.requires_grad_(False) if needs_reference(config) else None
    return LearnerEngine(load_policy(policy, device, load), policy.trained, config, total_steps, reference)


def _partitioned_model(
    checkpoint: Checkpoint, dtype: torch.dtype, device: str | torch.device, config: LearnerConfig
) -> JanusForConditionalGeneration:
    """The checkpoint's model, partitioned over the ranks from the start; rank 0 reads and sends each its part."""
    with partitioned(dtype, config):
        model = empty_model(checkpoint, dtype)
    rotary = model.model.language_model.rotary_emb
    # DeepSpeed computed it on the device; computed on the CPU, the frequencies equal those of the actors.
    model.model.language_model.rotary_emb = type(rotary)(checkpoint.config.text_config)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    state = model.state_dict(keep_vars=True)
    for name in checkpoint.shapes():
        if isinstance(state[name], torch.nn.Parameter):
            fill(state[name], lambda name=name: checkpoint.tensor(name))  # type: ignore[misc]
        else:
            state[name].copy_(checkpoint.tensor(name))
    return model
