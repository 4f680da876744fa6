"""The VQA reward against questions asked one by one, as T2I-R1's code asks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reward_cases import MIXED, PROMPTS, load, tiny
from safetensors import safe_open

from policy.prompts import PromptRecord


def test_git_answers_as_asked_one_by_one() -> None:
    """As T2I-R1's code asks: [CLS] and the question, the last position's logits."""
    from transformers import BertTokenizer, CLIPImageProcessorPil, GitForCausalLM

    folder = tiny()["git_vqa"]["checkpoint"]
    model, words = GitForCausalLM.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)

    def share(picture: np.ndarray, question: str) -> float:
        ids = [words.cls_token_id, *words(question, add_special_tokens=False)["input_ids"]]
        pixels = processor([picture], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1]
        yes, no = logits.softmax(-1)[[words.encode("yes")[1], words.encode("no")[1]]].tolist()
        return yes / (yes + no)

    asked = [("circle?",), ("red circle?", "blue square?"), ("old wooden chair?", "dog?"), (), ("green heart?",)]
    expected = [np.mean([share(p, q) for q in qs]) if qs else None for p, qs in zip(MIXED, asked, strict=True)]
    scores = load("git_vqa").score(MIXED, PROMPTS)
    assert scores[3] is None and expected[3] is None
    assert [s for s in scores if s is not None] == pytest.approx([e for e in expected if e is not None], abs=1e-5)


def test_git_under_either_rule() -> None:
    info = {"obj1": "dog", "obj2": "cat", "locality": "near"}
    spatial = PromptRecord.model_validate(
        {"prompt": "p", "task_type": "spatial", "nouns": ["dog", "cat"], "spatial_info": info}
    )
    asked = [spatial, PROMPTS[3], PROMPTS[1]]
    assert load("git_vqa").score(MIXED[:3], asked)[:2] == [None, None]
    assert load("git_vqa", "t2i_r1_code").score(MIXED[:3], asked)[:2] == [0.0, 0.0]
    assert load("git_vqa", "t2i_r1_code").score(MIXED[:3], asked)[2] == load("git_vqa").score(MIXED[:3], asked)[2]


def test_git_asks_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load("git_vqa").score(MIXED, PROMPTS[1:2] * 5)
    monkeypatch.setattr("rewards.models.git_vqa.MOST_ROWS", 4)
    assert load("git_vqa").score(MIXED, PROMPTS[1:2] * 5) == pytest.approx(whole, abs=1e-5)


def test_git_files_have_the_real_names() -> None:
    with safe_open(Path(tiny()["git_vqa"]["checkpoint"]) / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {
        "git.embeddings.word_embeddings.weight",
        "git.encoder.layer.0.attention.self.query.weight",
        "git.image_encoder.vision_model.embeddings.class_embedding",
        "git.visual_projection.visual_projection.0.weight",
        "output.weight",
    } <= names
