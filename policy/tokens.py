"""The meaning of token ids, and the token sequences of both stages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from policy.config import Templates

if TYPE_CHECKING:
    from transformers import JanusConfig, PreTrainedTokenizerBase

BEGIN_OF_IMAGE = "<begin_of_image>"
END_OF_IMAGE = "<end_of_image>"
_SLOT = re.compile(r"\{prompt\}|\{cot\}")


class TokenizerError(ValueError):
    """A tokenizer that lacks a special token the policy needs."""


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Special token ids and sizes. `image_tokens` = `grid`², a picture has `image_size` x `image_size` pixels."""

    bos: int
    eos: int
    pad: int
    boi: int
    text_vocab: int
    image_vocab: int
    image_tokens: int
    grid: int
    image_size: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, config: JanusConfig) -> TokenLayout:
        """Derive the layout from a checkpoint's tokenizer and config.

        Raises:
            TokenizerError: a special token is missing or lies outside the model's vocabulary.
        """
        ids = {
            "bos": tokenizer.bos_token_id,
            "eos": tokenizer.eos_token_id,
            "pad": tokenizer.pad_token_id,
            "boi": tokenizer.get_vocab().get(BEGIN_OF_IMAGE),
        }
        text_vocab = config.text_config.vocab_size
        for name, value in ids.items():
            if value is None or not 0 <= value < text_vocab:
                token = f" ({BEGIN_OF_IMAGE})" if name == "boi" else ""
                raise TokenizerError(
                    f"the tokenizer's {name} token id{token} is {value}; it must lie in the model's {text_vocab} ids"
                )
        grid = config.vq_config.num_patches
        return cls(
            **ids,
            text_vocab=text_vocab,
            image_vocab=config.vq_config.num_embeddings,
            image_tokens=grid * grid,
            grid=grid,
            image_size=grid * 2 ** (len(config.vq_config.channel_multiplier) - 1),
        )


def check_markers(tokenizer: PreTrainedTokenizerBase, templates: Templates) -> None:
    """Check that each role marker of the chat template is a single token, as `<|User|>` is in Janus-Pro.

    Raises:
        TokenizerError: a `<|...|>` of `templates.chat` is several tokens; the model was not trained on its pieces.
    """
    for marker in re.findall(r"<\|[^|<>\s]+\|>", templates.chat):
        ids = tokenizer.encode(marker, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise TokenizerError(
                f"the tokenizer has no token {marker}, which policy.templates.chat uses; "
                "write the chat turn that this checkpoint was trained with"
            )


class PromptBuilder:
    """Builds the prompt ids of both stages. Every prompt starts with BOS; user text loses its special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, layout: TokenLayout, templates: Templates) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._templates = templates
        # A tokenizer may treat a token as special without listing it among its special tokens.
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        reserved = {*tokenizer.all_special_tokens, *added, BEGIN_OF_IMAGE, END_OF_IMAGE}
        self._reserved = re.compile("|".join(map(re.escape, sorted(reserved))))

    def semantic_prompt(self, prompt: str) -> list[int]:
        """Stage 1: the chat turn that asks for the semantic-level CoT of `prompt`."""
        return self._turn(self._templates.instruction.replace("{prompt}", prompt), self._templates.system)

    def image_prompt(self, prompt: str, cot: str) -> list[int]:
        """Stage 2: the chat turn with prompt and CoT, joined as `templates.join` says, and begin-of-image."""
        if self._templates.join == "sentence":
            prompt, cot = prompt.strip(), cot.strip()
            if not cot:
                return [*self._turn(prompt), self._layout.boi]
            prompt = prompt.rstrip(".").rstrip()  # the template already has a full stop
        slots = {"{prompt}": prompt, "{cot}": cot}
        text = _SLOT.sub(lambda slot: slots[slot[0]], self._templates.image)
        return [*self._turn(text), self._layout.boi]

    def decode(self, token_ids: Sequence[int] | Tensor) -> str:
        """The CoT's text as drawn, without special tokens; `image_prompt` decides about the space around it."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _turn(self, user: str, system: str = "") -> list[int]:
        """BOS and a chat turn; there is no space around the user text, as in Janus's own code."""
        text = self._templates.chat.replace("{user}", self._plain(user).strip())
        if system:
            text = f"{system}\n\n{text}"
        return [self._layout.bos, *self._tokenizer.encode(text, add_special_tokens=False)]

    def _plain(self, text: str) -> str:
        while (plain := self._reserved.sub("", text)) != text:  # removing one token may create another
            text = plain
        return text


def unconditional(prompt_ids: Tensor, layout: TokenLayout) -> Tensor:
    """The prompt of the unconditional row: every id but BOS and begin-of-image becomes pad. Any shape."""
    keep = (prompt_ids == layout.bos) | (prompt_ids == layout.boi)
    return torch.where(keep, prompt_ids, torch.full_like(prompt_ids, layout.pad))
