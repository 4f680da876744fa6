"""What a client of a reward's HTTP service sends; `rewards/http_body.py` describes it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import save

from policy.prompts import PromptRecord


def encode_request(pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]) -> bytes:
    """Body for pictures (uint8 [H, W, 3]) and their prompt records."""
    header = {"format": "bicot.reward/1", "prompts": [prompt.model_dump(mode="json") for prompt in prompts]}
    tensors = {f"picture.{index}": np.ascontiguousarray(picture) for index, picture in enumerate(pictures)}
    return save(tensors, metadata={"bicot": json.dumps(header)})
