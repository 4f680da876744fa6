"""The detector: Grounding DINO looks for a prompt's objects, and `detections` scores what it found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from policy.prompts import PromptRecord
from rewards.config import Scoring
from rewards.models.checkpoint import (
    CheckpointReward,
    RewardCheckpointError,
    load_model,
    read_config,
    require_files,
    require_scoring,
    torch_dtype,
)
from rewards.models.pixels import PictureProcessor
from rewards.scoring import detections, t2i_r1_code
from rewards.scoring.detections import Detection
from rewards.scoring.detector_caption import Caption, make_caption, objects

if TYPE_CHECKING:
    import torch


MOST_PICTURES = 8  # in one forward


class GroundingDino(CheckpointReward):
    """Existence, relation or count of a prompt's objects, in [0, 1]; runs in float32, as boxes need it."""

    def __init__(self, checkpoint: str, box_threshold: float = 0.3, scoring: Scoring = "paper") -> None:
        """Load a checkpoint such as IDEA-Research/grounding-dino-tiny, onto the GPU where the replica has one."""
        from transformers import AutoImageProcessor, AutoTokenizer, GroundingDinoForObjectDetection

        self._model = load_model(GroundingDinoForObjectDetection, checkpoint, dtype=torch_dtype("float32"))
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", local_files_only=True)
        self._processor = PictureProcessor(processor)
        self._threshold, self._scoring = box_threshold, scoring

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """The checkpoint has to be there, complete, and a Grounding DINO; the threshold a probability."""
        folder = Path(options["checkpoint"])
        names = ("config.json", "preprocessor_config.json", "tokenizer.json", ("*.safetensors", "*.bin"))
        require_files(folder, "checkpoint", "a Grounding DINO checkpoint", *names)
        read_config(folder, "checkpoint", "grounding-dino")
        require_scoring(options)
        if not 0 <= options.get("box_threshold", 0.3) < 1:
            raise RewardCheckpointError(f"box_threshold: {options['box_threshold']} is not in [0, 1)")

    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        """One score a picture, by the rules that `scoring` names."""
        found = self.detect(pictures, prompts)
        return [self._one(*these) for these in zip(pictures, prompts, found, strict=True)]

    def _one(self, picture: np.ndarray, prompt: PromptRecord, found: list[Detection]) -> float:
        size = (picture.shape[1], picture.shape[0])
        if self._scoring == "t2i_r1_code":
            return t2i_r1_code.score_prompt(prompt, found, size, self._threshold)
        return detections.score_prompt(prompt, detections.without_twins(found), size, self._threshold)

    def detect(self, pictures: Sequence[np.ndarray], prompts: Sequence[PromptRecord]) -> list[list[Detection]]:
        """Every box above the threshold, in pixels of its picture, once for each matching phrase."""
        import torch

        limit = self._model.config.max_text_len
        captions = [make_caption(objects(prompt, self._scoring), self._tokenizer, limit) for prompt in prompts]
        pixels = [self._processor([picture], self._model.device) for picture in pictures]
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)  # padding a picture would change its features
        for index, picture in enumerate(pixels):
            by_shape[picture.shape].append(index)
        found: list[list[Detection]] = [[] for _ in pictures]
        step = MOST_PICTURES
        for batch in (same[at : at + step] for same in by_shape.values() for at in range(0, len(same), step)):
            probabilities, boxes = self._forward(torch.cat([pixels[i] for i in batch]), [captions[i] for i in batch])
            for row, i in enumerate(batch):
                height, width = pictures[i].shape[:2]
                scale = torch.tensor([width, height, width, height])
                found[i] = _detections(captions[i], probabilities[row], boxes[row] * scale, self._threshold)
        return found

    def _forward(self, pixels: torch.Tensor, captions: list[Caption]) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities [pictures, queries, max_text_len] and corner boxes [pictures, queries, 4] in [0, 1]."""
        import torch

        longest = max(len(caption.input_ids) for caption in captions)
        ids = torch.full((len(captions), longest), self._tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, caption in enumerate(captions):
            ids[row, : len(caption.input_ids)] = torch.tensor(caption.input_ids)
            mask[row, : len(caption.input_ids)] = 1
        device = self._model.device
        with torch.inference_mode():
            out = self._model(pixel_values=pixels, input_ids=ids.to(device), attention_mask=mask.to(device))
        centre, extent = out.pred_boxes.cpu().split(2, dim=-1)
        return out.logits.sigmoid().cpu(), torch.cat([centre - extent / 2, centre + extent / 2], dim=-1)


def _detections(
    caption: Caption, probabilities: torch.Tensor, boxes: torch.Tensor, threshold: float
) -> list[Detection]:
    """A box's score for a phrase is its mean probability [queries, tokens] over the phrase's tokens."""
    found = []
    for span in caption.spans:
        scores = probabilities[:, span.start : span.end].mean(-1)
        for query in (scores > threshold).nonzero().flatten().tolist():
            x1, y1, x2, y2 = boxes[query].tolist()
            found.append(Detection(span.phrase, scores[query].item(), (x1, y1, x2, y2)))
    return found
