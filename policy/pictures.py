"""Image tokens to pictures, and pictures to PNG."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration

Picture = NDArray[np.uint8]
"""A picture [height, width, 3]."""


@torch.inference_mode()
def decode_pictures(model: JanusForConditionalGeneration, token_ids: Tensor) -> Picture:
    """Decode image tokens [B, N] with the checkpoint's VQ decoder to uint8 pictures [B, H, W, 3]."""
    pixels = model.model.vqmodel.decode(token_ids.to(model.device)).float()
    return ((pixels + 1) * 127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_png(picture: Picture) -> bytes:
    """Encode one picture as PNG."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
