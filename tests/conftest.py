"""Fixtures that several rooms share: a random tiny policy of the true architecture, and a few prompt records."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from policy.config import PolicyConfig, Templates
from policy.janus import Policy, make_policy, save_policy
from policy.prompts import PromptRecord
from policy.tiny import tiny_janus

torch.set_num_threads(1)
settings.register_profile("bicot", deadline=None)  # a busy machine is no failure
settings.load_profile("bicot")
pytest_plugins = ["quick_tests", "shared_ray", "side_by_side", "watched_run"]

SPECIAL = [
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<begin_of_image>",
    "<end_of_image>",
    "<|User|>",
    "<|Assistant|>",
]
WORDS = "a red green blue circle square of and left right above plan : . , the two three".split()
TEMPLATES = Templates(instruction="plan : {prompt}")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of 26 ids."""
    vocab = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation()])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
    )


@pytest.fixture(scope="session")
def tiny_policy() -> Policy:
    """A random Janus: hidden 64, 2 layers, 4x4 image tokens of 32 codes, 16x16 pixels. Do not change its weights."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = tiny_janus(
        tokenizer,
        hidden=64,
        layers=2,
        heads=2,
        positions=128,
        image_vocab=32,
        image_size=16,
        vq_multipliers=(1, 1, 1),
    )
    with torch.no_grad():  # wider than the default, so that distributions are far from uniform
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and not name.startswith("model.vision_model"):
                parameter.mul_(4)
    return make_policy(model, tokenizer, PolicyConfig(checkpoint="", dtype="float32", templates=TEMPLATES))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy, saved as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    save_policy(tiny_policy.model, tiny_policy.tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_checkpoint: Path) -> PolicyConfig:
    """The config that loads `tiny_checkpoint`."""
    return PolicyConfig(checkpoint=str(tiny_checkpoint), dtype="float32", templates=TEMPLATES)


@pytest.fixture(scope="session")
def records() -> list[PromptRecord]:
    """Three prompts in the tiny tokenizer's words."""
    return [
        PromptRecord(prompt="a red circle", task_type="object", nouns=("red circle",)),
        PromptRecord(
            prompt="a red circle and a blue square.", task_type="color", nouns=("red circle", "blue square")
        ),
        PromptRecord(prompt="two green circle", task_type="numeracy", nouns=("green circle",)),
    ]
