"""Maps names and shapes of Janus's original checkpoint layout to those of transformers' Janus, and back.

All functions are pure. One HF tensor lies at one `Place` of the original layout. The original stores the vision
tower's query, key and value as one tensor, the position embedding with a leading 1, and some tensors that the Hugging
Face model does not use. Both layouts store the same VQ codebook: both models normalise it when they decode.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_TOWER, _VISION = "vision_model.vision_tower", "model.vision_model"
_POSITIONS = f"{_TOWER}.pos_embed"

# (original, Hugging Face); the first match counts; # stands for a number, and the rest of a name stays.
_PAIRS = [
    ("language_model.lm_head", "lm_head"),
    ("language_model.model", "model.language_model"),
    ("gen_embed", "model.generation_embeddings"),
    ("gen_head.output_mlp_projector", "model.generation_head.proj_out"),
    ("gen_head.vision_head", "model.generation_head.vision_head"),
    (_POSITIONS, f"{_VISION}.embeddings.position_embedding.weight"),
    (f"{_TOWER}.patch_embed.proj", f"{_VISION}.embeddings.patch_embedding"),
    (f"{_TOWER}.norm", f"{_VISION}.post_layernorm"),
    (f"{_TOWER}.blocks.#.norm1", f"{_VISION}.encoder.layers.#.layer_norm1"),
    (f"{_TOWER}.blocks.#.norm2", f"{_VISION}.encoder.layers.#.layer_norm2"),
    (f"{_TOWER}.blocks.#.attn.proj", f"{_VISION}.encoder.layers.#.self_attn.projection_layer"),
    (f"{_TOWER}.blocks.#.mlp", f"{_VISION}.encoder.layers.#.mlp"),
    *[
        (f"gen_vision_model.{half}.{theirs}", f"model.vqmodel.{half}.{ours}")
        for half, blocks in (("encoder", "down"), ("decoder", "up"))
        for theirs, ours in (
            ("conv_blocks.#.res", f"{blocks}.#.block"),
            ("conv_blocks", blocks),
            ("mid.0", "mid.block_1"),
            ("mid.1", "mid.attn_1"),
            ("mid.2", "mid.block_2"),
        )
    ],
    ("gen_vision_model", "model.vqmodel"),
]
_ALIGNERS = {"aligner": "model.aligner", "gen_aligner": "model.generation_aligner"}
_FUSED = re.compile(rf"{re.escape(_TOWER)}\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
_SPLIT = re.compile(rf"{re.escape(_VISION)}\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
_DROPPED = re.compile(
    rf"{re.escape(_TOWER)}\.attn_pool\..+"  # pooling that the tower has but never runs
    r"|gen_vision_model\.quantize\.codebook_used"  # a training statistic
    r"|.+\.rotary_emb\.inv_freq"  # computed; old files hold it
)


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's place in the original layout: its name, and its third of the rows if three tensors share one."""

    name: str
    part: int | None = None


def is_dropped(original: str) -> bool:
    """Whether the original layout holds this tensor and the Hugging Face layout does not."""
    return _DROPPED.fullmatch(original) is not None


def hf_names(original: str) -> tuple[str, ...]:
    """The Hugging Face names of an original tensor: one, three of a fused one, none of a dropped or unknown one."""
    if is_dropped(original):
        return ()
    fused = _FUSED.fullmatch(original)
    if fused:
        return tuple(f"{_VISION}.encoder.layers.{fused[1]}.self_attn.{p}_proj.{fused[2]}" for p in "qkv")
    aligner = re.fullmatch(r"(aligner|gen_aligner)\.layers\.(\d+)\.(weight|bias)", original)
    if aligner:
        number = int(aligner[2])  # a sequence of linear layers with activations between them
        layer = "fc1" if number == 0 else f"hidden_layers.{number // 2 - 1}"
        return (f"{_ALIGNERS[aligner[1]]}.{layer}.{aligner[3]}",) if number % 2 == 0 else ()
    name = _renamed(original, 0)
    return (name,) if name else ()


def place_of(hf: str) -> Place:
    """The place in the original layout of the tensor with that Hugging Face name.

    Raises:
        KeyError: the original layout has no such tensor.
    """
    split = _SPLIT.fullmatch(hf)
    if split:
        return Place(f"{_TOWER}.blocks.{split[1]}.attn.qkv.{split[3]}", "qkv".index(split[2]))
    aligner = re.fullmatch(r"model\.(generation_)?aligner\.(fc1|hidden_layers\.(\d+))\.(weight|bias)", hf)
    if aligner:
        number = 0 if aligner[2] == "fc1" else 2 * int(aligner[3]) + 2
        return Place(f"{'gen_aligner' if aligner[1] else 'aligner'}.layers.{number}.{aligner[4]}")
    name = _renamed(hf, 1)
    if name is None:
        raise KeyError(hf)
    return Place(name)


def from_original(place: Place, tensor: Tensor) -> Tensor:
    """The Hugging Face tensor at `place` of the original tensor, as a view."""
    if place.part is not None:
        rows = tensor.shape[0] // 3
        return tensor[place.part * rows : (place.part + 1) * rows]
    return tensor[0] if place.name == _POSITIONS else tensor


def to_original(original: str, tensors: Sequence[Tensor]) -> Tensor:
    """The original tensor of that name, made from the Hugging Face tensors of `hf_names`, in that order."""
    if len(tensors) > 1:
        return torch.cat(list(tensors))
    return tensors[0][None] if original == _POSITIONS else tensors[0]


def _renamed(name: str, side: int) -> str | None:
    for pattern, target in _compiled(side):
        match = pattern.fullmatch(name)
        if match:
            *numbers, tail = match.groups()
            for number in numbers:
                target = target.replace("#", number, 1)
            return target + (tail or "")
    return None


@cache
def _compiled(side: int) -> list[tuple[re.Pattern[str], str]]:
    """Patterns of one side of `_PAIRS` with the other side's names."""
    return [
        (re.compile(re.escape(pair[side]).replace(r"\#", r"(\d+)") + r"(\..+)?"), pair[1 - side]) for pair in _PAIRS
    ]
