"""The detector against transformers' own post-processing, and under both scoring rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reward_cases import MIXED, PROMPTS, load, tiny
from safetensors import safe_open

from rewards.models.grounding_dino import GroundingDino
from rewards.scoring.detector_caption import make_caption


def test_detections_are_those_of_the_processor() -> None:
    """For a caption of one one-token phrase, transformers' own post-processing finds the same boxes."""
    from transformers import AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

    folder, picture = tiny()["grounding_dino"]["checkpoint"], MIXED[2]
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    words, processor = AutoTokenizer.from_pretrained(folder), GroundingDinoImageProcessorPil.from_pretrained(folder)
    tokens = words("circle.", return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, **processor([picture], return_tensors="pt"))
    scores = out.logits.sigmoid()[0, :, 1]
    (boxes,) = processor.post_process_object_detection(out, threshold=0.0, target_sizes=[picture.shape[:2]])
    expected = {round(score, 4) for score in scores.tolist() if score > 0.3}
    (found,) = load("grounding_dino").detect([picture], PROMPTS[:1])
    assert expected and {round(d.score, 4) for d in found} == expected
    theirs = boxes["boxes"]
    assert all((theirs - torch.tensor(d.box)).abs().max(-1).values.min() < 1e-3 for d in found)


def test_detections_do_not_depend_on_batch_mates() -> None:
    reward = load("grounding_dino")
    together = reward.detect(MIXED, PROMPTS)
    for found, picture, prompt in zip(together, MIXED, PROMPTS, strict=True):
        (alone,) = reward.detect([picture], [prompt])
        assert [d.label for d in found] == [d.label for d in alone]
        assert [d.score for d in found] == pytest.approx([d.score for d in alone], abs=1e-4)
        for mine, other in zip(found, alone, strict=True):
            assert mine.box == pytest.approx(other.box, abs=1e-2)
    assert {d.label for d in together[2]} <= {"old wooden chair", "dog"} and any(" " in d.label for d in together[2])


def test_large_batches_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = load("grounding_dino")
    whole = reward.detect([MIXED[0]] * 5, PROMPTS)
    monkeypatch.setattr("rewards.models.grounding_dino.MOST_PICTURES", 2)
    for mine, other in zip(reward.detect([MIXED[0]] * 5, PROMPTS), whole, strict=True):
        assert [d.score for d in mine] == pytest.approx([d.score for d in other], abs=1e-4)


def test_a_phrase_scores_the_mean_of_its_tokens() -> None:
    reward = GroundingDino(tiny()["grounding_dino"]["checkpoint"], box_threshold=0.0)
    caption = make_caption(["old wooden chair", "dog"], reward._tokenizer)
    probabilities, _ = reward._forward(reward._processor(MIXED[:1]), [caption])
    (found,) = reward.detect(MIXED[:1], PROMPTS[2:3])
    mean = probabilities[0, :, 1:4].mean(-1)
    assert sorted(d.score for d in found if d.label != "dog") == pytest.approx(
        sorted(mean[mean > 0].tolist()), abs=1e-4
    )


def test_the_detector_scores_by_either_rule() -> None:
    wrong = PROMPTS[3].model_copy(
        update={"numeracy_info": (PROMPTS[3].numeracy_info[0].model_copy(update={"num": 99}),)}
    )
    assert load("grounding_dino").score([MIXED[0]], [wrong]) == [0.0]
    assert load("grounding_dino", "t2i_r1_code").score([MIXED[0]], [wrong]) == [pytest.approx(0.2)]
    chair = PROMPTS[2].model_copy(update={"nouns": ("old wooden chair",)})
    assert load("grounding_dino").score([MIXED[0]], [chair]) == [1.0]
    assert load("grounding_dino", "t2i_r1_code").score([MIXED[0]], [chair]) == [0.0]


def test_detector_files_have_the_real_names() -> None:
    with safe_open(Path(tiny()["grounding_dino"]["checkpoint"]) / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {
        "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self.query.weight",
        "model.text_backbone.encoder.layer.0.attention.self.query.weight",
        "model.encoder.layers.0.fusion_layer.attn.vision_proj.weight",
        "model.decoder.layers.0.encoder_attn_text.query.weight",
        "model.query_position_embeddings.weight",
    } <= names
