"""HPS against open_clip's forward, written out, and HPSv2's preprocessing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reward_cases import MIXED, PROMPTS, load, on_meta, tiny
from torch.nn import functional

from rewards.models.checkpoint import RewardCheckpointError
from rewards.models.hps import STD, Hps
from rewards.models.open_clip import clip_config, to_transformers
from rewards.models.tiny import open_clip_tensors, write_tiny_hps


def open_clip_cosine(state: dict[str, torch.Tensor], pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """open_clip's forward, from its own tensors: [pictures] cosines."""

    def tower(prefix: str, x: torch.Tensor, heads: int, mask: torch.Tensor | None) -> torch.Tensor:
        for layer in range(2):
            p = f"{prefix}transformer.resblocks.{layer}."
            get = {name.removeprefix(p): tensor for name, tensor in state.items() if name.startswith(p)}
            width = x.shape[-1]
            normed = functional.layer_norm(x, (width,), get["ln_1.weight"], get["ln_1.bias"]).transpose(0, 1)
            attended, _ = functional.multi_head_attention_forward(
                normed, normed, normed, width, heads, get["attn.in_proj_weight"], get["attn.in_proj_bias"], None,
                None, False, 0.0, get["attn.out_proj.weight"], get["attn.out_proj.bias"], False, attn_mask=mask,
            )  # fmt: skip
            x = x + attended.transpose(0, 1)
            inner = functional.layer_norm(x, (width,), get["ln_2.weight"], get["ln_2.bias"])
            inner = functional.gelu(functional.linear(inner, get["mlp.c_fc.weight"], get["mlp.c_fc.bias"]))
            x = x + functional.linear(inner, get["mlp.c_proj.weight"], get["mlp.c_proj.bias"])
        return x

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    patches = functional.conv2d(pixels, state["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    x = norm(torch.cat([first, patches], 1) + state["visual.positional_embedding"], "visual.ln_pre")
    image = norm(tower("visual.", x, 1, None)[:, 0], "visual.ln_post") @ state["visual.proj"]
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    mask = torch.full((77, 77), -math.inf).triu(1)
    x = norm(tower("", x, 1, mask), "ln_final")
    text = x[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]
    return functional.cosine_similarity(image, text)


def test_hps_is_open_clip() -> None:
    state = torch.load(tiny()["hps"]["checkpoint"], weights_only=True)["state_dict"]
    reward = load("hps")
    long = PROMPTS[0].model_copy(update={"prompt": "a red circle " * 40})
    records = [*PROMPTS[:2], long]
    ids = torch.zeros(3, 77, dtype=torch.long)
    for row, record in zip(ids, records, strict=True):
        tokens = reward._tokenizer(record.prompt)["input_ids"][:77]
        row[: len(tokens)] = torch.tensor([*tokens[:-1], reward._tokenizer.eos_token_id])
    expected = open_clip_cosine(state, reward.pixels(MIXED[:3]), ids)
    assert reward.score(MIXED[:3], records) == pytest.approx(expected.tolist(), abs=1e-5)


def test_hps_pictures_are_those_of_its_processor() -> None:
    from transformers import CLIPImageProcessorPil

    y, x, c = np.mgrid[:96, :72, :3]
    smooth = [(128 + 100 * np.sin(y / a) * np.cos(x / b + c)).astype(np.uint8) for a, b in ((9, 7), (5, 30), (20, 4))]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor([*smooth, MIXED[0][:32, :32]], return_tensors="pt")["pixel_values"]
    pixels = load("hps").pixels([*smooth, MIXED[0][:32, :32]])
    # HPSv2 resizes floats, the processor bytes in two passes: about a grey level apart
    assert ((pixels - expected).abs().amax((0, 2, 3)) * torch.tensor(STD)).max() < 1.5 / 255
    assert torch.allclose(pixels[-1], expected[-1], atol=1e-5)


def test_hps_embeds_a_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = load("hps", dtype="float16")
    embedded: list[int] = []
    own = reward._model.get_text_features

    def counted(**tokens: Any) -> Any:
        embedded.append(len(tokens["input_ids"]))
        return own(**tokens)

    monkeypatch.setattr(reward._model, "get_text_features", counted)
    monkeypatch.setattr("rewards.models.clip.MOST_TEXTS", 2)
    for records in (PROMPTS[:2], PROMPTS[:1] * 2, PROMPTS[:3]):
        reward.score(MIXED[: len(records)], list(records))
    assert embedded == [2, 1]
    assert list(reward._texts) == [PROMPTS[1].prompt, PROMPTS[2].prompt]


def test_hps_reads_half_precision_and_refuses_another_tokenizer(tmp_path: Path) -> None:
    file = write_tiny_hps(tmp_path, seed=0)
    saved = torch.load(file, weights_only=True)
    saved["state_dict"] = {name: tensor.half() for name, tensor in saved["state_dict"].items()}
    torch.save(saved, file)
    options = {"checkpoint": str(file), "tokenizer": str(tmp_path)}
    scores = Hps(**options).score(MIXED, PROMPTS)
    assert scores == pytest.approx(load("hps").score(MIXED, PROMPTS), abs=5e-3)
    saved["state_dict"]["token_embedding.weight"] = torch.zeros(100, 64)
    torch.save(saved, file)
    with pytest.raises(RewardCheckpointError, match=r"tokenizer: .* has \d+ tokens, .* 100"):
        Hps(**options)


def test_the_released_size_fits() -> None:
    """ViT-H-14: 986 million parameters, whose config is told from their shapes alone."""
    from transformers import CLIPModel

    sizes = {"width": 1024, "vision_width": 1280, "layers": 24, "embed": 1024, "vision_layers": 32}
    state = dict(open_clip_tensors(on_meta, 49408, **sizes, patch=14, patches=256))
    assert sum(tensor.numel() for tensor in state.values()) == 986_109_441
    config = clip_config(state, 49406, 49407)
    text, vision = config.text_config, config.vision_config
    assert (text.num_attention_heads, vision.num_attention_heads, vision.image_size) == (16, 16, 224)
    with torch.device("meta"):
        own = {name: tensor.shape for name, tensor in CLIPModel(config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in to_transformers(state).items()} == own
