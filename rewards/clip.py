"""CLIP score: the cosine between a picture and its prompt, under any CLIP checkpoint in the Hugging Face layout.

HPS v2.1 is such a model (a ViT-H-14 trained on human preferences), once its state dict is in that layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from policy.prompts import PromptRecord
from rewards.base import Reward


class ClipScore(Reward):
    """Cosine similarity in [-1, 1]. Prompts longer than the text tower's context are cut off at its end."""

    def __init__(self, checkpoint: str, dtype: str = "float32") -> None:
        """Load the checkpoint, onto the GPU where the replica has one; `dtype` is float32, bfloat16 or float16."""
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model = CLIPModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype), local_files_only=True)
        self._model = model.to(self._device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        self._pictures = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", local_files_only=True)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """The checkpoint has to be there, complete, and a CLIP; `dtype` a known one."""
        folder = Path(options["checkpoint"])
        for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise ValueError(f"checkpoint: {folder} holds no {name}; give the folder of a CLIP checkpoint")
        if options.get("dtype", "float32") not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype: {options['dtype']!r} is none of float32, bfloat16, float16")

    @torch.inference_mode()
    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        """One cosine a picture; a prompt is embedded once however many pictures it has."""
        texts = list(dict.fromkeys(prompt.prompt for prompt in prompts))
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self._device)  # fmt: skip
        pixels = self._pictures(pictures, return_tensors="pt")["pixel_values"].to(self._device, self._model.dtype)
        text = torch.nn.functional.normalize(self._model.get_text_features(**tokens).pooler_output.float(), dim=-1)
        image = torch.nn.functional.normalize(
            self._model.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1
        )
        rows = torch.tensor([texts.index(prompt.prompt) for prompt in prompts], device=self._device)
        return (image * text[rows]).sum(-1).tolist()
