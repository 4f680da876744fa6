"""The CLIP reward on a tiny random model of the true architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from policy.prompts import PromptRecord
from rewards.base import RewardConfigError, check_reward, load_reward
from rewards.config import RewardConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 1}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def config(checkpoint: Path, **options: str) -> RewardConfig:
    options = {"checkpoint": str(checkpoint), **options}
    return RewardConfig(name="clip", target="rewards.models.clip:ClipScore", options=options)


def test_batched_and_one_by_one_agree(checkpoint: Path, records: list[PromptRecord]) -> None:
    reward = load_reward(config(checkpoint))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 40 + 8 * n, 3), dtype=np.uint8) for n in range(3)]
    together = reward.score(pictures, records)
    alone = [reward.score([picture], [record])[0] for picture, record in zip(pictures, records, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(score is not None and -1 <= score <= 1 for score in together) and len(set(together)) == 3


def test_scores_equal_the_models_own(checkpoint: Path, records: list[PromptRecord]) -> None:
    model = CLIPModel.from_pretrained(checkpoint).eval()
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels = CLIPImageProcessorPil.from_pretrained(checkpoint)([picture], return_tensors="pt")
    with torch.no_grad():
        out = model(**tiny_tokenizer()([records[0].prompt], return_tensors="pt"), **pixels)
    expected = (out.logits_per_image / model.logit_scale.exp()).item()
    assert load_reward(config(checkpoint)).score([picture], records[:1]) == pytest.approx([expected], abs=1e-5)


def test_a_wrong_checkpoint_is_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(RewardConfigError, match=r"reward 'clip': options: .*holds no config\.json"):
        check_reward(config(tmp_path))
    with pytest.raises(RewardConfigError, match="dtype: 'int4' is none of"):
        check_reward(config(checkpoint, dtype="int4"))
