"""The share of yes, and the words that are one token."""

from __future__ import annotations

import pytest
import torch

from rewards.models.tiny_tokenizers import bert_tokenizer
from rewards.models.yes_no import single_tokens, yes_share


def test_the_share_of_yes_is_of_both_answers_alone() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0], [5.0, 5.0, 6.0, 4.0, 1.0]]).log()
    assert yes_share(logits, [0, 2], [1]).tolist() == pytest.approx([4 / 6, 11 / 16])
    assert yes_share(logits, [3], [0, 1, 2]).tolist() == pytest.approx([4 / 10, 4 / 20])
    assert yes_share(logits.bfloat16(), [0], [1]).dtype == torch.float32


def test_words_of_several_tokens_or_none_are_left_out() -> None:
    tokenizer = bert_tokenizer()
    dog, cat = tokenizer.convert_tokens_to_ids(["dog", "cat"])
    assert dog != tokenizer.unk_token_id and single_tokens(tokenizer, "dog", "dog cat", "椅", "cat") == [dog, cat]
    with pytest.raises(ValueError, match="the tokenizer knows none of dog cat, 椅 as one token"):
        single_tokens(tokenizer, "dog cat", "椅")
