"""Values that other programs or earlier runs depend on, written out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from policy.checkpoint import open_checkpoint
from policy.export import export_checkpoint
from policy.guidance import entropy, guided_logits, log_distribution, token_logprobs
from policy.original_config import SIGLIP
from policy.pictures import decode_pictures
from policy.prompts import PromptRecord, load_prompts, rows_by_task
from policy.seeds import member_seed
from policy.weight_files import WeightFiles, write_weights


def test_pixels_from_minus_one_to_one_are_bytes() -> None:
    pixels = torch.tensor([[[[-1.2, -1.0, -0.5], [0.0, 0.5, 1.0]]] * 3]) + torch.tensor([0.0, 0.25, 9.0]).view(
        3, 1, 1
    )
    vq: Any = SimpleNamespace(decode=lambda ids: pixels)
    model: Any = SimpleNamespace(device=torch.device("cpu"), model=SimpleNamespace(vqmodel=vq))
    (picture,) = decode_pictures(model, torch.zeros(1, 4, dtype=torch.int64))
    assert picture.tolist() == [
        [[0, 6, 255], [0, 32, 255], [64, 96, 255]],
        [[128, 159, 255], [191, 223, 255], [255, 255, 255]],
    ]


def test_distributions_by_hand() -> None:
    cond, bare = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 1.0, 0.0])
    assert guided_logits(cond, bare, 2.0).tolist() == [-1.0, 1.0, 6.0]
    halves = log_distribution(torch.tensor([[1.0, 1.0], [1.0, 3.0]]).log(), 1.0)
    assert entropy(halves).tolist() == pytest.approx([0.6931472, 0.5623351])
    quarters = log_distribution(torch.tensor([1.0, 9.0]).log(), 2.0)
    assert quarters.exp().tolist() == pytest.approx([0.25, 0.75])
    assert token_logprobs(quarters.expand(2, 2), torch.tensor([1, 0])).exp().tolist() == pytest.approx([0.75, 0.25])
    assert token_logprobs(quarters.expand(2, 3, 2), torch.ones(2, 3, dtype=torch.int64)).shape == (2, 3)
    assert guided_logits(cond.bfloat16(), bare.bfloat16(), 1.1).dtype == torch.float32
    assert log_distribution(cond.half()).dtype == torch.float32
    assert log_distribution(cond.double()).dtype == torch.float64


def test_ids_and_seeds_never_change() -> None:
    """A run that was begun goes on under a later release."""
    record = PromptRecord(prompt="a red circle", task_type="object", nouns=("red circle",))
    assert record.id == "8cbf502735c9b035" and member_seed(7, "ab", 2, 3) == 2_757_340_177_430_980_981


def test_prompts_are_grouped_by_family_or_else_by_type(tmp_path: Path) -> None:
    rows = [("a", "color", None), ("b", "shape", "held"), ("c", "shape", None)]
    text = [
        json.dumps({"prompt": prompt, "task_type": kind, "nouns": ["x"], "family": family})
        for prompt, kind, family in rows
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    records = load_prompts(path)
    assert [record.group for record in records] == ["color", "held", "shape"]
    assert list(rows_by_task(records).items()) == [("shape", 2), ("color", 1)]


def test_the_originals_side_files_are_janus_pros(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As deepseek-ai/Janus-Pro-7B has them, but for the sizes."""
    export_checkpoint(open_checkpoint(tiny_checkpoint), tmp_path / "original", "original")
    pixels = json.loads((tmp_path / "original/preprocessor_config.json").read_text(encoding="utf-8"))
    assert pixels == {
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "VLMImageProcessor",
        "image_size": 16,
        "image_std": [0.5, 0.5, 0.5],
        "min_size": 14,
        "processor_class": "VLChatProcessor",
        "rescale_factor": 0.00392156862745098,
    }
    processor = json.loads((tmp_path / "original/processor_config.json").read_text(encoding="utf-8"))
    assert processor.pop("num_image_tokens") > 0 and processor == {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": "<image_placeholder>",
        "mask_prompt": True,
        "processor_class": "VLChatProcessor",
        "sft_format": "deepseek",
    }


def test_shards_hold_at_most_their_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = WeightFiles(tiny_checkpoint)
    sizes = {name: info.bytes for name, info in source.tensors.items()}

    def read(name: str) -> Tensor:
        return source.read(name)

    limit = 2 * max(sizes.values())
    write_weights(tmp_path, source.tensors, read, limit)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"] == {"total_size": sum(sizes.values())} and index["weight_map"].keys() == sizes.keys()
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for file in files:
        assert sum(sizes[name] for name, where in index["weight_map"].items() if where == file) <= limit
    write_weights(tmp_path, source.tensors, read, sum(sizes.values()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]
    again = WeightFiles(tmp_path)
    assert all(torch.equal(again.read(name), source.read(name)) for name in sizes)


def test_the_vision_towers_that_the_original_names() -> None:
    """SigLIP's published sizes (arXiv 2303.15343): width, layers, heads, patch."""
    large, so400m = (1024, 24, 16, 16), (1152, 27, 16, 14)
    assert {
        "siglip_large_patch16_384": large, "siglip_so400m_patch14_384": so400m, "siglip_so400m_patch14_224": so400m
    } == SIGLIP  # fmt: skip
