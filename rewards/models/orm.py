"""The output reward model: a LLaVA-OneVision tuned to judge says whether the picture fits the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from policy.prompts import PromptRecord
from rewards.config import Scoring
from rewards.models import llava_qwen
from rewards.models.checkpoint import (
    CheckpointReward,
    load_model,
    read_config,
    require_dtype,
    require_files,
    require_scoring,
    torch_dtype,
)
from rewards.models.pixels import PictureProcessor
from rewards.models.yes_no import QUESTION, single_tokens, yes_share

if TYPE_CHECKING:
    import torch

BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = f" {QUESTION}<|im_end|>\n<|im_start|>assistant\n"
TEMPERATURE = 0.3
TOP_K = 50


class Orm(CheckpointReward):
    """P(yes) / (P(yes) + P(no)) of the first answer token, in [0, 1], from one deterministic forward.

    `scoring: t2i_r1_code` draws that token at temperature 0.3 instead, seeded by picture and prompt, and scores 0
    unless it is yes or no.
    """

    def __init__(self, checkpoint: str, dtype: str = "bfloat16", scoring: Scoring = "paper") -> None:
        """Load a llava_qwen checkpoint or a converted one; `dtype` is bfloat16, float16 or float32."""
        from transformers import LlavaOnevisionForConditionalGeneration, Qwen2Tokenizer

        folder = Path(checkpoint)
        arguments: dict[str, Any] = {"dtype": torch_dtype(dtype)}
        config = read_config(folder, "checkpoint")
        if llava_qwen.ARCHITECTURE in config.get("architectures", ()):
            weights = llava_qwen.read_weights(folder)
            arguments |= {"config": llava_qwen.onevision_config(config, weights)}
            arguments |= {"state_dict": llava_qwen.to_transformers(weights)}
            self._model = load_model(LlavaOnevisionForConditionalGeneration, None, **arguments)
            self._newline = llava_qwen.appends_newline(config)
        else:
            self._model = load_model(LlavaOnevisionForConditionalGeneration, checkpoint, **arguments)
            self._newline = True
        self._tokenizer = Qwen2Tokenizer.from_pretrained(checkpoint, local_files_only=True)
        processor = _square_processor(folder, self._model.config.vision_config.image_size)
        self._mean, self._processor = processor.image_mean, PictureProcessor(processor)
        self._before = self._tokenizer(BEFORE)["input_ids"]
        self._yes = single_tokens(self._tokenizer, "yes", "Yes")
        self._no = single_tokens(self._tokenizer, "no", "No")
        self._draws = _sampling(folder) if scoring == "t2i_r1_code" else None

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """The checkpoint has to be there, complete, and in one of both layouts; `dtype` a known one."""
        folder = Path(options["checkpoint"])
        names = ("config.json", ("tokenizer.json", "vocab.json"), ("*.safetensors", "pytorch_model*.bin"))
        require_files(folder, "checkpoint", "a LLaVA-OneVision checkpoint", *names)
        config = read_config(folder, "checkpoint")
        if llava_qwen.ARCHITECTURE not in config.get("architectures", ()):
            read_config(folder, "checkpoint", "llava_onevision")
            require_files(folder, "checkpoint", "a LLaVA-OneVision checkpoint", "*processor_config.json")
        require_dtype(options)
        require_scoring(options)

    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        """One share of yes a picture."""
        logits = self.answer_logits(pictures, prompts)
        if self._draws is None:
            return yes_share(logits, self._yes, self._no).tolist()
        return [self._drawn(*these) for these in zip(logits, pictures, prompts, strict=True)]

    def answer_logits(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> torch.Tensor:
        """Logits [pictures, vocabulary] of the first answer token, float32 on the CPU."""
        import torch

        with torch.inference_mode():
            features = self._picture_features(pictures)
            asked = [prompt.prompt for prompt in prompts]
            turns = {text: self._turn(text) for text in dict.fromkeys(asked)}
            rows = [_around(image, *turns[text]) for image, text in zip(features, asked, strict=True)]
            ends = torch.tensor([len(row) - 1 for row in rows], device=features.device)
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # causal: what follows is not seen
            hidden = self._model.model.language_model(inputs_embeds=padded, use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(rows), device=hidden.device), ends]
            logits: torch.Tensor = self._model.lm_head(last).float().cpu()
            return logits

    def _picture_features(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """[pictures, patches, width], and one more for `image_newline` where the checkpoint was tuned with it."""
        import torch

        model, config = self._model.model, self._model.config
        squares = [pad_to_square(picture, self._mean) for picture in pictures]
        pixels = self._processor(squares, model.device).to(model.dtype)
        states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features: torch.Tensor = model.multi_modal_projector(states[config.vision_feature_layer])
        if self._newline:
            newline = model.image_newline.to(features).expand(len(features), 1, -1)
            features = torch.cat([features, newline], dim=1)
        return features

    def _turn(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [tokens, width] of the chat turn before and after the picture that it asks about."""
        import torch

        ids = (self._before, self._tokenizer(AFTER.format(prompt=prompt))["input_ids"])
        embed = self._model.get_input_embeddings()
        before, after = (embed(torch.tensor(one, device=self._model.device)) for one in ids)
        return before, after

    def _drawn(self, logits: torch.Tensor, picture: np.ndarray, prompt: PromptRecord) -> float:
        import torch

        probabilities = self._draws(None, logits[None]).softmax(-1)[0]  # type: ignore[misc]
        key = blake2b(picture.tobytes() + repr(picture.shape).encode() + prompt.prompt.encode(), digest_size=7)
        generator = torch.Generator().manual_seed(int.from_bytes(key.digest(), "big"))
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        if self._tokenizer.convert_ids_to_tokens(token).lower().strip() not in ("yes", "no"):
            return 0.0
        yes, no = (probabilities[self._tokenizer.convert_tokens_to_ids(word)].item() for word in ("yes", "no"))
        return yes / (yes + no) if yes + no else 0.0


def _around(image: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([before, image, after])


def pad_to_square(picture: np.ndarray, mean: tuple[float, float, float] | list[float]) -> np.ndarray:
    """The picture (uint8 [H, W, 3]) in the middle of a square of the processor's mean colour."""
    height, width = picture.shape[:2]
    if height == width:
        return picture
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = [int(value * 255) for value in mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def _square_processor(folder: Path, size: int) -> Any:
    """SigLIP's processor for one square, with mean and deviation of the checkpoint's own where it brings one."""
    from transformers import AutoImageProcessor, SiglipImageProcessorPil

    arguments: dict[str, Any] = {"size": {"height": size, "width": size}}
    if any(folder.glob("*processor_config.json")):
        own = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        arguments |= {"image_mean": own.image_mean, "image_std": own.image_std, "resample": own.resample}
    return SiglipImageProcessorPil(**arguments)


def _sampling(folder: Path) -> Any:
    """What transformers' `generate` does to logits at T2I-R1's temperature, with the checkpoint's top-k and top-p."""
    from transformers import GenerationConfig, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper
    from transformers import TopPLogitsWarper as TopP

    own = GenerationConfig()
    if (folder / "generation_config.json").is_file():
        own = GenerationConfig.from_pretrained(folder, local_files_only=True)
    steps: list[Any] = [TemperatureLogitsWarper(TEMPERATURE)]
    steps += [TopKLogitsWarper(TOP_K if own.top_k is None else own.top_k)] if own.top_k != 0 else []
    steps += [TopP(own.top_p)] if own.top_p is not None and own.top_p < 1 else []
    return LogitsProcessorList(steps)
