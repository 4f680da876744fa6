"""Loading and saving a Janus policy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers  # imports its model classes on first use, which takes seconds
from torch.nn import Parameter
from transformers.initialization import no_init_weights

from policy.checkpoint import Checkpoint, load_tokenizer, open_checkpoint
from policy.config import PolicyConfig, Templates
from policy.errors import CheckpointError as CheckpointError
from policy.export import save_hf
from policy.tokens import PromptBuilder, TokenizerError, TokenLayout, check_markers

_GENERATION = ("model.generation_embeddings.", "model.generation_aligner.", "model.generation_head.")
LANGUAGE_MODEL = ("model.language_model.", "lm_head.")
"""Prefixes of the names of the language model's tensors."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A Janus model with its tokenizer, token layout and prompt builder."""

    model: transformers.JanusForConditionalGeneration
    tokenizer: transformers.PreTrainedTokenizerBase
    layout: TokenLayout
    prompts: PromptBuilder


def check_checkpoint(folder: str | Path, templates: Templates | None = None) -> transformers.JanusConfig:
    """A checkpoint's config, in either layout, after a check of its files that reads no weights.

    Raises:
        CheckpointError: as `open_checkpoint`, or the tokenizer is missing or lacks special tokens, including those of
            `templates`.
    """
    with _told_as_setting(folder):
        return _open(folder, templates)[0].config


def load_model(
    checkpoint: Checkpoint, dtype: torch.dtype, device: str | torch.device = "cpu"
) -> transformers.JanusForConditionalGeneration:
    """The checkpoint's model in eval mode, allocated on the device and filled tensor by tensor."""
    model = empty_model(checkpoint, dtype)
    for parameter in model.parameters():
        parameter.data = torch.empty_like(parameter, device=device)
    state = model.to(device).state_dict()
    for name, tensor in checkpoint.tensors():
        state[name].copy_(tensor)
    return model


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype) -> transformers.JanusForConditionalGeneration:
    """The checkpoint's model in eval mode, with uninitialised weights."""
    config = copy.deepcopy(checkpoint.config)
    for part in (config, config.text_config, config.vision_config, config.vq_config):
        part.dtype = dtype  # otherwise the parts would have the number format that the checkpoint was saved in
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():  # on the CPU, for the same rotary frequencies everywhere; weights stay untouched
            model = transformers.JanusForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(checkpoint.folder)
    return model.eval()


def load_policy(
    config: PolicyConfig,
    device: str | torch.device = "cpu",
    load: Callable[
        [Checkpoint, torch.dtype, str | torch.device], transformers.JanusForConditionalGeneration
    ] = load_model,
) -> Policy:
    """Load a Janus checkpoint of either layout, in eval mode, in the number format of the config.

    The model is allocated on the device and filled tensor by tensor, so memory holds it once, and one tensor. `load`
    can replace this way of loading.

    Raises:
        CheckpointError: as `check_checkpoint`, or weights cannot be read.
    """
    with _told_as_setting(config.checkpoint):
        checkpoint, tokenizer = _open(config.checkpoint, config.templates)
        return make_policy(load(checkpoint, getattr(torch, config.dtype), device), tokenizer, config)


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
    """Write a checkpoint in the Hugging Face layout, in the model's number format; beyond 5 GB in shards."""
    save_hf(model, tokenizer, folder)


def is_trained(name: str, trained: str) -> bool:
    """Whether the parameter with that state-dict name trains under `PolicyConfig.trained`."""
    return name.startswith(LANGUAGE_MODEL) or (trained == "generation" and name.startswith(_GENERATION))


def trained_parameters(model: transformers.JanusForConditionalGeneration, trained: str) -> dict[str, Parameter]:
    """The parameters that train, by their state-dict names, in the model's order."""
    return {name: value for name, value in model.named_parameters() if is_trained(name, trained)}


def _open(folder: str | Path, templates: Templates | None) -> tuple[Checkpoint, transformers.PreTrainedTokenizerBase]:
    """The checkpoint and its tokenizer, after a check that they fit each other and the templates."""
    checkpoint, tokenizer = open_checkpoint(folder), load_tokenizer(folder)
    TokenLayout.of(tokenizer, checkpoint.config)
    if templates:
        check_markers(tokenizer, templates)
    return checkpoint, tokenizer


@contextmanager
def _told_as_setting(folder: str | Path) -> Iterator[None]:
    """Let errors name the setting that gave the folder."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"policy.checkpoint: {error}") from error
    except TokenizerError as error:
        raise CheckpointError(f"policy.checkpoint: {folder}: {error}") from error
