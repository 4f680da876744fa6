"""The word-level tokenizer of the shapes world, with Janus's special tokens, and how the tiny Janus is asked."""

from __future__ import annotations

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from policy.config import Templates
from policy.tokens import BEGIN_OF_IMAGE, END_OF_IMAGE
from shapes.prompts import SPLITS, all_records
from shapes.world import COLOURS, FAMILIES, SHAPES

TEMPLATES = Templates(system="", instruction="plan the picture : {prompt}", image="{prompt} . {cot}")
"""The wording that the shipped checkpoint was warm-started with; runs on it must use the same."""

_ROLES = ["<|User|>", "<|Assistant|>"]
_SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", BEGIN_OF_IMAGE, END_OF_IMAGE, "<image_placeholder>", *_ROLES]
_PLAN_WORDS = [*COLOURS, *SHAPES, "left", "right", "top", "bottom"]


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])


def vocabulary() -> list[str]:
    """Special tokens, punctuation, then every word of prompts, plans and templates in alphabetical order."""
    texts = [record.prompt for family in FAMILIES for split in SPLITS for record in all_records(split, family)]
    texts += [TEMPLATES.instruction.replace("{prompt}", ""), " ".join(_PLAN_WORDS)]
    words = {word for text in texts for word, _ in _splitter().pre_tokenize_str(text)}
    punctuation = {".", ",", ":"}
    return [*_SPECIAL, *sorted(punctuation), *sorted(words - punctuation)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark, lower case; anything else is <unk>."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = _splitter()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=_SPECIAL[4:],
        clean_up_tokenization_spaces=False,
    )
