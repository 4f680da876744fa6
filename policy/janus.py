"""Loading, saving and making a Janus policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers  # its model classes are imported when they are first named, which takes seconds
from safetensors import SafetensorError
from torch.nn import Parameter

from policy.config import PolicyConfig
from policy.tokens import PromptBuilder, TokenizerError, TokenLayout

_GENERATION = ("model.generation_embeddings.", "model.generation_aligner.", "model.generation_head.")
_LANGUAGE = ("model.language_model.", "lm_head.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the folder or file and what to do."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A Janus model with its tokenizer, token layout and prompt builder."""

    model: transformers.JanusForConditionalGeneration
    tokenizer: transformers.PreTrainedTokenizerBase
    layout: TokenLayout
    prompts: PromptBuilder


def check_checkpoint(folder: str | Path) -> transformers.JanusConfig:
    """Read a checkpoint's config without its weights.

    Raises:
        CheckpointError: the folder is missing, incomplete, or not a Janus checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"policy.checkpoint: {folder} is not a folder; give the folder of a Janus checkpoint")
    for name, patterns in {
        "config.json": ["config.json"],
        "weights": ["*.safetensors"],
        "a tokenizer": ["tokenizer.json"],
    }.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            raise CheckpointError(f"policy.checkpoint: {folder} holds no {' or '.join(patterns)} ({name})")
    try:
        config = transformers.JanusConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"policy.checkpoint: {folder / 'config.json'} cannot be read: {error}") from error
    if config.model_type != "janus":
        raise CheckpointError(f"policy.checkpoint: {folder} holds a {config.model_type} model, not janus")
    return config


def load_policy(config: PolicyConfig, device: str | torch.device = "cpu") -> Policy:
    """Load a Janus checkpoint in the Hugging Face layout, in eval mode.

    Raises:
        CheckpointError: as `check_checkpoint`, or weights or special tokens are missing.
    """
    folder = Path(config.checkpoint)
    check_checkpoint(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, info = transformers.JanusForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, config.dtype), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"policy.checkpoint: {folder} cannot be loaded: {error}") from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise CheckpointError(f"policy.checkpoint: {folder}: {len(wrong)} tensors do not fit: {', '.join(wrong[:5])}")
    try:
        return make_policy(model.to(device), tokenizer, config)
    except TokenizerError as error:
        raise CheckpointError(f"policy.checkpoint: {folder}: {error}") from error


def make_policy(
    model: transformers.JanusForConditionalGeneration,
    tokenizer: transformers.PreTrainedTokenizerBase,
    config: PolicyConfig,
) -> Policy:
    """Put a model and its tokenizer together."""
    layout = TokenLayout.of(tokenizer, model.config)
    return Policy(model.eval(), tokenizer, layout, PromptBuilder(tokenizer, layout, config.templates))


def save_policy(
    model: transformers.JanusForConditionalGeneration,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: str | Path,
) -> None:
    """Write a checkpoint in the Hugging Face layout, in the model's number format."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def is_trained(name: str, trained: str) -> bool:
    """Whether the parameter of that state-dict name trains under `PolicyConfig.trained`."""
    return name.startswith(_LANGUAGE) or (trained == "generation" and name.startswith(_GENERATION))


def trained_parameters(model: transformers.JanusForConditionalGeneration, trained: str) -> dict[str, Parameter]:
    """The parameters that train, by their state-dict names, in the model's order."""
    return {name: value for name, value in model.named_parameters() if is_trained(name, trained)}


def tiny_janus(
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int | None = None,
    intermediate: int | None = None,
    positions: int = 512,
    image_vocab: int = 256,
    image_size: int = 48,
    vq_channels: int = 32,
    vq_multipliers: tuple[int, ...] = (1, 1, 2, 2),
) -> transformers.JanusForConditionalGeneration:
    """A randomly initialised Janus of the true architecture, as small as asked for, with an untied lm_head.

    A picture has (image_size / 2^(len(vq_multipliers) - 1))² tokens; VQ channels come in multiples of 32.
    """
    patch = 2 ** (len(vq_multipliers) - 1)
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads or heads,
            intermediate_size=intermediate or hidden * 8 // 3 // 32 * 32,
            max_position_embeddings=positions,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        ),
        vision_config=transformers.JanusVisionConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=image_size, patch_size=patch,
            projection_dim=hidden, num_image_tokens=(image_size // patch) ** 2,
        ),
        vq_config=transformers.JanusVQVAEConfig(
            embed_dim=8, num_embeddings=image_vocab, latent_channels=vq_channels, base_channels=vq_channels,
            channel_multiplier=list(vq_multipliers), num_res_blocks=1, projection_dim=hidden,
            image_token_embed_dim=hidden,
        ),
        image_token_id=tokenizer.get_vocab().get("<image_placeholder>", tokenizer.pad_token_id),
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.JanusForConditionalGeneration(config)
