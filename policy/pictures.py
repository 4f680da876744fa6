"""Image tokens to pictures, and pictures to PNG."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from policy.config import Pixels

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration

Picture = NDArray[np.uint8]
"""A picture [height, width, 3]."""


@torch.inference_mode()
def decode_pictures(model: JanusForConditionalGeneration, token_ids: Tensor, pixels: Pixels = "round") -> Picture:
    """Decode image tokens [B, N] with the checkpoint's VQ decoder to uint8 pictures [B, H, W, 3].

    `pixels` says how a value between two bytes becomes a byte.
    """
    decoded = model.model.vqmodel.decode(token_ids.to(model.device)).float()
    values = ((decoded + 1) * 127.5).clamp(0, 255)
    if pixels == "round":
        values = values.round()
    return values.byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_png(picture: Picture) -> bytes:
    """Encode one picture as PNG."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
