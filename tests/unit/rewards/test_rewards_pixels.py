"""Looked-up pixels are those of the checkpoint's own processor, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reward_cases import MIXED
from transformers import CLIPImageProcessorPil, GroundingDinoImageProcessorPil, SiglipImageProcessorPil

from rewards.models.pixels import PictureProcessor

PROCESSORS: dict[str, Any] = {
    "grounding dino": GroundingDinoImageProcessorPil(size={"shortest_edge": 80, "longest_edge": 133}),
    "git": CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}),
    "crop that pads": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 42, "width": 42}),
    "siglip": SiglipImageProcessorPil(size={"height": 38, "width": 38}),
    "no arithmetic of its own": CLIPImageProcessorPil(do_normalize=False),
    "padded to a size": GroundingDinoImageProcessorPil(
        size={"shortest_edge": 40, "longest_edge": 60}, pad_size={"height": 96, "width": 96}
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_processor_s_to_the_bit(name: str) -> None:
    processor = PROCESSORS[name]
    ours = PictureProcessor(processor)
    levels = np.arange(256 * 3, dtype=np.uint32).reshape(16, 16, 3).astype(np.uint8)
    for picture in (*MIXED, levels):
        assert torch.equal(ours([picture]), processor([picture], return_tensors="pt")["pixel_values"])


def test_several_at_once_are_each_alone() -> None:
    ours = PictureProcessor(PROCESSORS["siglip"])
    assert torch.equal(ours(MIXED), torch.cat([ours([picture]) for picture in MIXED]))
