"""The shipped checkpoint, and the script that makes one."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from paths import ROOT

from policy.config import PolicyConfig
from policy.janus import Policy, load_policy
from policy.pictures import decode_pictures
from policy.prompts import load_prompts
from shapes.evaluate import draw_samples, table
from shapes.prompts import DATA
from shapes.rewards import Detector, Strict
from shapes.supervised import SupervisedRecipe
from shapes.tokenizer import TEMPLATES, build_tokenizer
from shapes.vq_training import VQRecipe, scene_codes
from shapes.warm_start import warm_start
from shapes.world import asked, place

CHECKPOINT = ROOT / "shapes/checkpoint"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(PolicyConfig(checkpoint=str(CHECKPOINT), dtype="float32", templates=TEMPLATES))


def test_it_is_small_and_speaks_this_worlds_words(policy: Policy) -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 8e6
    assert policy.tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert (policy.layout.image_tokens, policy.layout.grid, policy.layout.image_size) == (36, 6, 48)


def test_what_the_tokens_say_can_be_seen_in_the_decoded_picture(policy: Policy) -> None:
    random = Random(7)
    records = load_prompts(DATA / "dev.jsonl")
    scenes = [place(asked(record), random) for record in records]
    pictures = decode_pictures(policy.model, torch.tensor([scene_codes(scene) for scene in scenes]))
    for reward in (Strict(), Detector()):
        scores = [score for score in reward.score(list(pictures), records) if score is not None]
        assert len(scores) == len(records)
        assert np.mean(scores) >= 0.9


def test_it_plans_and_draws_with_headroom_left(policy: Policy) -> None:
    records = load_prompts(DATA / "dev.jsonl")
    samples = draw_samples(policy, records, samples=1, guidance_scale=2.0)
    assert 0.4 < np.mean([sample.right for sample in samples]) < 0.8
    assert 0.5 < np.mean([sample.plan_right for sample in samples]) < 0.95
    assert table(samples).count("\n") == 3


@pytest.mark.slow
def test_warm_start_writes_a_checkpoint_that_loads(tmp_path: Path) -> None:
    short = SupervisedRecipe(steps=2, batch=4)
    warm_start(tmp_path, seed=1, vq_recipe=VQRecipe(autoencoder_steps=1, steps=1, batch=2), supervised=short)
    loaded = load_policy(PolicyConfig(checkpoint=str(tmp_path), dtype="float32", templates=TEMPLATES))
    assert loaded.model.dtype == torch.float32
    book = loaded.model.model.vqmodel.quantize.embedding.weight
    assert torch.allclose(book.norm(dim=-1), torch.ones(len(book)), atol=1e-2)
