"""Small tokenizers of the kinds that the reward models use, built on the spot from one word list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

WORDS = (
    "a an the and or of on in to with is are this that by image picture photo prompt generated does accurately "
    "represent please answer yes no without explanation you helpful assistant system user one two three four five "
    "six seven eight red green blue yellow black white purple orange brown pink circle square triangle star cross "
    "ring heart left right above below top bottom side next near dog cat bird car bus book tv chair table bed cup "
    "fluffy wooden leather metallic round oval small large old"
).split()
END_OF_WORD = "</w>"


def clip_tokenizer() -> Any:
    """CLIP's byte-pair encoding: 256 bytes, 256 word-final bytes, merges, and the two special tokens last."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges([*word[:-1], word[-1] + END_OF_WORD] for word in WORDS)
    tokens = [*alphabet, *(byte + END_OF_WORD for byte in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = _numbered([*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def bert_tokenizer() -> Any:
    """BERT's WordPiece, uncased, with the real ids up to its letters: Grounding DINO knows some by number."""
    from transformers import BertTokenizer

    unused = iter(f"[unused{n}]" for n in range(10_000))
    tokens = ["[PAD]", *(next(unused) for _ in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [next(unused) for _ in range(999 - len(tokens))]
    tokens += [chr(code) for code in range(33, 127) if not chr(code).isupper()]  # '.' is 1012, '?' is 1029
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens += [word for word in WORDS if len(word) > 1] + [f"##{letter}" for letter in letters]
    return BertTokenizer(vocab=_numbered(tokens), model_max_length=512)


def qwen_tokenizer() -> Any:
    """Qwen2's byte-level byte-pair encoding with the special tokens of a chat turn behind the vocabulary."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    forms = [form for word in WORDS for form in (word, f"Ġ{word}")] + ["Yes", "No", "This", "Does", "Please", "You"]
    merges = _merges(forms)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Qwen2Tokenizer(vocab=_numbered(dict.fromkeys(tokens)), merges=merges, model_max_length=32768)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def _merges(words: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Byte-pair encoding learnt until every word, given as symbols, is one token; of equals, the first by name."""
    words, merges = [tuple(word) for word in words], []
    while counts := Counter(pair for word in words for pair in pairwise(word)):
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        words = [_merged(word, merges[-1]) for word in words]
    return merges


def _merged(word: Sequence[str], pair: tuple[str, str]) -> tuple[str, ...]:
    symbols: list[str] = []
    for symbol in word:
        if symbols and (symbols[-1], symbol) == pair:
            symbols[-1] += symbol
        else:
            symbols.append(symbol)
    return tuple(symbols)


def _numbered(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}
