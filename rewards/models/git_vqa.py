"""The VQA reward: GIT is asked whether it sees each of a prompt's attribute phrases."""

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
    load_model,
    read_config,
    require_dtype,
    require_files,
    require_scoring,
    torch_dtype,
)
from rewards.models.pixels import PictureProcessor
from rewards.models.yes_no import single_tokens, yes_share

if TYPE_CHECKING:
    import torch

NOT_ASKED = ("spatial", "numeracy")
MOST_ROWS = 32  # questions in one forward


class GitVqa(CheckpointReward):
    """Mean of P(yes) / (P(yes) + P(no)) over the questions "<phrase>?", in [0, 1].

    Phrases are the prompt's `attr_nouns`, or its `nouns` if it has none. For spatial and numeracy prompts the reward
    is missing, or a constant 0 under T2I-R1's rules.
    """

    def __init__(self, checkpoint: str, dtype: str = "float32", scoring: Scoring = "paper") -> None:
        """Load a checkpoint such as microsoft/git-large-vqav2; `dtype` is float32, bfloat16 or float16."""
        from transformers import AutoImageProcessor, AutoTokenizer, GitForCausalLM

        self._model = load_model(GitForCausalLM, checkpoint, dtype=torch_dtype(dtype))
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil", local_files_only=True)
        self._processor = PictureProcessor(processor)
        self._yes, self._no = (single_tokens(self._tokenizer, word) for word in ("yes", "no"))
        self._not_asked = 0.0 if scoring == "t2i_r1_code" else None

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """The checkpoint has to be there, complete, and a GIT; `dtype` a known one."""
        folder = Path(options["checkpoint"])
        names = ("config.json", "preprocessor_config.json", "tokenizer.json", ("*.safetensors", "*.bin"))
        require_files(folder, "checkpoint", "a GIT checkpoint", *names)
        read_config(folder, "checkpoint", "git")
        require_dtype(options)
        require_scoring(options)

    def score(self, pictures: list[np.ndarray], prompts: list[PromptRecord]) -> list[float | None]:
        """One mean per picture; pictures with the same number of questions share forward passes."""
        scores: list[float | None] = [self._not_asked] * len(prompts)
        by_questions: dict[int, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            if prompt.task_type not in NOT_ASKED:
                by_questions[len(questions(prompt))].append(index)
        for number, indices in by_questions.items():
            step = max(1, MOST_ROWS // number)
            for start in range(0, len(indices), step):
                chunk = indices[start : start + step]
                shares = self._shares([pictures[i] for i in chunk], [questions(prompts[i]) for i in chunk])
                for index, share in zip(chunk, shares.mean(0).tolist(), strict=True):
                    scores[index] = share
        return scores

    def _shares(self, pictures: Sequence[np.ndarray], asked: Sequence[Sequence[str]]) -> torch.Tensor:
        """Share of yes [questions, pictures], every picture with its own questions, as many for each.

        A picture is encoded once: GIT repeats pictures along the batch, so rows go question by question.
        """
        import torch

        rows = [question for one_each in zip(*asked, strict=True) for question in one_each]
        ids = [
            [self._tokenizer.cls_token_id, *ids] for ids in self._tokenizer(rows, add_special_tokens=False).input_ids
        ]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [self._tokenizer.pad_token_id] * (longest - len(row)) for row in ids])
        device, dtype = self._model.device, self._model.dtype
        pixels = self._processor(pictures, device)
        with torch.inference_mode():  # causal text: what comes after a question does not reach it
            logits = self._model(
                input_ids=padded.to(device),
                pixel_values=pixels.to(dtype),
                logits_to_keep=longest,
                use_cache=False,
            ).logits
        ends = torch.tensor([len(row) - 1 for row in ids], device=device)
        shares = yes_share(logits[torch.arange(len(ids), device=device), ends], self._yes, self._no)
        return shares.view(-1, len(pictures)).cpu()


def questions(prompt: PromptRecord) -> list[str]:
    """The questions about a prompt."""
    return [f"{phrase}?" for phrase in prompt.attr_nouns or prompt.nouns]
