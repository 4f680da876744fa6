"""The models that are measured: Janus of the true architecture, with random weights, at four sizes.

`tiny` is the laptop's shapes policy; from 100m up vocabularies and picture are those of Janus-Pro. The VQ decoder,
which no core is measured with, stays small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers

from policy.config import PolicyConfig
from policy.janus import Policy, make_policy
from policy.tiny import tiny_tokenizer


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of the language model; prompts and CoTs in tokens, `image_tokens` a picture."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    text_vocab: int = 102_400
    image_vocab: int = 16_384
    image_tokens: int = 576
    prompt_tokens: int = 80
    cot_tokens: int = 60
    group_size: int = 8

    @property
    def layer_parameters(self) -> int:
        """Of the decoder layers' matrices together."""
        return self.layers * self.hidden * (4 * self.hidden + 3 * self.intermediate)


SCALES = {
    "tiny": Scale(128, 4, 4, 352, 512, 256, 36, prompt_tokens=24, cot_tokens=12),
    "100m": Scale(768, 12, 12, 2048),
    "1b": Scale(2048, 24, 16, 5632),
    "7b": Scale(4096, 30, 32, 11008),
}


def make_model(scale: str, device: str, dtype: torch.dtype, seed: int = 0) -> Policy:
    """A policy of that scale with random weights, and a tokenizer whose ids are fewer than the vocabulary."""
    size = SCALES[scale]
    tokenizer = tiny_tokenizer()
    side = round(size.image_tokens**0.5)
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=size.text_vocab, hidden_size=size.hidden, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, num_key_value_heads=size.heads, intermediate_size=size.intermediate,
            max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
        ),
        vision_config=transformers.JanusVisionConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16 * side, patch_size=16,
            projection_dim=size.hidden, num_image_tokens=size.image_tokens,
        ),
        vq_config=transformers.JanusVQVAEConfig(
            embed_dim=8, num_embeddings=size.image_vocab, latent_channels=32, base_channels=32,
            channel_multiplier=[1, 1, 1, 1, 1], num_res_blocks=1, projection_dim=size.hidden,
            image_token_embed_dim=size.hidden, num_patches=side,
        ),
        image_token_id=tokenizer.get_vocab()["<image_placeholder>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    for part in (config, config.text_config, config.vision_config, config.vq_config):
        part.dtype = dtype
    with torch.device(device), torch.random.fork_rng(devices=["cuda"] if device == "cuda" else []):
        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = transformers.JanusForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(before)
    return make_policy(model, tokenizer, PolicyConfig(checkpoint="random"))
