"""The cosine between a picture and its prompt under a CLIP: of any checkpoint in the Hugging Face layout here, of HPS
v2.1 in `rewards.models.hps`."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from policy.prompts import PromptRecord
from rewards.models.checkpoint import (
    CheckpointReward,
    load_model,
    read_config,
    require_dtype,
    require_files,
    torch_dtype,
)
from rewards.models.pixels import PictureProcessor

if TYPE_CHECKING:
    import torch

MOST_TEXTS = 4096


class ClipCosine(CheckpointReward):
    """Cosine similarity in [-1, 1] under a `CLIPModel`; a subclass loads it and says how pictures become pixels.

    A prompt is embedded once, however many pictures and calls it has: the last `MOST_TEXTS` are kept. Prompts longer
    than the text tower's context are cut off at its end.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._texts: OrderedDict[str, torch.Tensor] = OrderedDict()

    @abstractmethod
    def pixels(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """Pictures (uint8 [H, W, 3]) as the vision tower's input [pictures, 3, size, size], float32."""

    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        """One cosine a picture."""
        import torch

        with torch.inference_mode():
            text = self._text_embeddings([prompt.prompt for prompt in prompts])
            pixels = self.pixels(pictures).to(self._model.device, self._model.dtype)
            image = _unit(self._model.get_image_features(pixel_values=pixels).pooler_output)
            return (image * text).sum(-1).tolist()

    def _text_embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """[texts, width], of length 1."""
        import torch

        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            longest = self._model.config.text_config.max_position_embeddings
            tokens = self._tokenizer(new, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            features = self._model.get_text_features(**tokens.to(self._model.device)).pooler_output
            self._texts |= zip(new, _unit(features), strict=True)
        for text in texts:
            self._texts.move_to_end(text)
        embedded = torch.stack([self._texts[text] for text in texts])
        while len(self._texts) > MOST_TEXTS:
            self._texts.popitem(last=False)
        return embedded


class ClipScore(ClipCosine):
    """The cosine under a CLIP checkpoint in the Hugging Face layout, with its own picture processor."""

    def __init__(self, checkpoint: str, dtype: str = "float32") -> None:
        """Load the checkpoint, onto the GPU where the replica has one; `dtype` is float32, bfloat16 or float16."""
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        model = load_model(CLIPModel, checkpoint, dtype=torch_dtype(dtype))
        super().__init__(model, AutoTokenizer.from_pretrained(checkpoint, local_files_only=True))
        processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", local_files_only=True)
        self._processor = PictureProcessor(processor)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """The checkpoint has to be there, complete, and a CLIP; `dtype` a known one."""
        folder = Path(options["checkpoint"])
        names = ("config.json", "preprocessor_config.json", "tokenizer_config.json", ("*.safetensors", "*.bin"))
        require_files(folder, "checkpoint", "a CLIP checkpoint", *names)
        read_config(folder, "checkpoint", "clip")
        require_dtype(options)

    def pixels(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """As the checkpoint's own processor makes them."""
        return self._processor(pictures, self._model.device)


def _unit(features: torch.Tensor) -> torch.Tensor:
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)
