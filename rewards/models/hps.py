"""HPS v2.1: human preference as the cosine between picture and prompt, from its released file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rewards.models.checkpoint import (
    RewardCheckpointError,
    load_model,
    require_dtype,
    require_files,
    torch_dtype,
)
from rewards.models.clip import ClipCosine
from rewards.models.open_clip import clip_config, to_transformers

if TYPE_CHECKING:
    import torch

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_TELLING = (b"state_dict", b"visual.conv1.weight", b"token_embedding.weight")


class Hps(ClipCosine):
    """Cosine in [-1, 1] under HPS_v2.1_compressed.pt, an open_clip ViT-H-14."""

    def __init__(self, checkpoint: str, tokenizer: str, dtype: str = "float32") -> None:
        """Load and convert the file; `tokenizer` is the folder of a CLIP tokenizer, `dtype` as for `ClipScore`."""
        import torch
        from transformers import CLIPModel, CLIPTokenizer

        words = CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        config = clip_config(state, words.bos_token_id, words.eos_token_id)
        if len(words) != config.text_config.vocab_size:
            raise RewardCheckpointError(
                f"tokenizer: {tokenizer} has {len(words)} tokens, {checkpoint} {config.text_config.vocab_size}"
            )
        arguments = {"config": config, "state_dict": to_transformers(state), "dtype": torch_dtype(dtype)}
        super().__init__(load_model(CLIPModel, None, **arguments), words)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """The file has to be there and an open_clip state dict, the tokenizer too; `dtype` a known one."""
        file = Path(options["checkpoint"])
        if not file.is_file():
            raise RewardCheckpointError(f"checkpoint: {file}: no such file; give HPS_v2.1_compressed.pt")
        try:
            with zipfile.ZipFile(file) as archive:
                names = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                header = archive.read(names)
        except (zipfile.BadZipFile, StopIteration) as error:
            raise RewardCheckpointError(f"checkpoint: {file} is not a file that torch.save wrote, or torn") from error
        if not all(text in header for text in _TELLING):
            raise RewardCheckpointError(f"checkpoint: {file} holds no open_clip ViT under 'state_dict'")
        files = (("tokenizer.json", "merges.txt"), ("tokenizer.json", "vocab.json"))
        require_files(Path(options["tokenizer"]), "tokenizer", "a CLIP tokenizer", *files)
        require_dtype(options)

    def pixels(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """As HPSv2 makes them: resized in floats (bicubic, antialiased), cut to the middle square, normalised."""
        import torch

        size = self._model.config.vision_config.image_size
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        squares = torch.cat([_middle_square(picture, size) for picture in pictures])
        return (squares - mean) / std


def _middle_square(picture: np.ndarray, size: int) -> torch.Tensor:
    """[1, 3, size, size] in [0, 1], but for the overshoot of bicubic interpolation."""
    import torch

    height, width = picture.shape[:2]
    short = min(height, width)
    shape = (size * height // short, size * width // short)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    if shape != (height, width):
        pixels = torch.nn.functional.interpolate(pixels, shape, mode="bicubic", align_corners=False, antialias=True)
    top, left = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
    return pixels[..., top : top + size, left : left + size]
