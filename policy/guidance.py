"""From logits to the sampling distribution; sampler and learner call the same functions.

Classifier-free guidance for autoregressive models: softmax((uncond + w (cond - uncond)) / temperature). The
unconditional row sees only BOS and begin-of-image of the prompt (Janus, arXiv 2501.17811).
"""

from __future__ import annotations

import torch
from torch import Tensor


def guided_logits(conditional: Tensor, unconditional: Tensor, scale: Tensor | float) -> Tensor:
    """uncond + w (cond - uncond), in float32 or wider; logits are [..., vocab], `scale` broadcasts against them."""
    conditional, unconditional = _wide(conditional), _wide(unconditional)
    return unconditional + scale * (conditional - unconditional)


def log_distribution(logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """Log-probabilities [..., vocab] of softmax(logits / temperature), in float32 or wider."""
    return torch.log_softmax(_wide(logits) / temperature, dim=-1)


def token_logprobs(log_probs: Tensor, token_ids: Tensor) -> Tensor:
    """The log-probability [...] of each token of `token_ids` [...] under `log_probs` [..., vocab]."""
    return log_probs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats [...] of the distributions `log_probs` [..., vocab]."""
    return -(log_probs.exp() * log_probs).sum(-1)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
