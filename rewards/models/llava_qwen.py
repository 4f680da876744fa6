"""The llava_qwen layout that LLaVA-NeXT trains and saves, as transformers' LlavaOnevision.

    model.layers.N, embed_tokens, norm, lm_head    Qwen2
    model.vision_tower.vision_tower.vision_model   SigLIP, without its last layer and pooling head
    model.mm_projector.0 and .2                    two linear layers
    model.image_newline                            one embedding

The config holds Qwen2's sizes and the vision tower's name; its `image_aspect_ratio` is not read, as T2I-R1 sets it to
'pad' whatever it says. The tower's sizes are read off its tensors, but for its heads: they are 72 wide, as in SigLIP
so400m.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.models.checkpoint import RewardCheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import LlavaOnevisionConfig

ARCHITECTURE = "LlavaQwenForCausalLM"
HEAD_WIDTH = 72

_TOWER = "model.vision_tower.vision_tower.vision_model."
_RENAMED = (
    (_TOWER, "vision_tower.vision_model."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
_QWEN_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id",
    "sliding_window", "use_sliding_window", "max_window_layers", "rope_theta",
)  # fmt: skip


def appends_newline(config: Mapping[str, Any]) -> bool:
    """Whether LLaVA-NeXT puts `image_newline` behind the features of a single picture of this checkpoint."""
    return "unpad" in config.get("mm_patch_merge_type", "flat")


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors shards, or of its pytorch_model shards (read as weights only)."""
    import torch
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    if not weights:
        for file in sorted(folder.glob("pytorch_model*.bin")):
            weights |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return weights


def to_transformers(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename to the names of the converted checkpoints that LlavaOnevision loads."""
    return dict(_renamed(weights))


def _renamed(weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights.items():
        for old, new in _RENAMED:
            if name.startswith(old):
                yield new + name.removeprefix(old), tensor
                break
        else:
            raise RewardCheckpointError(f"tensor {name!r} does not belong to a llava_qwen checkpoint")


def onevision_config(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> LlavaOnevisionConfig:
    """The config of the model that `to_transformers(weights)` fits into.

    Raises:
        RewardCheckpointError: a size cannot be told.
    """
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    try:
        width, _, _, patch = weights[f"{_TOWER}embeddings.patch_embedding.weight"].shape
        patches = weights[f"{_TOWER}embeddings.position_embedding.weight"].shape[0]
        inner = weights[f"{_TOWER}encoder.layers.0.mlp.fc1.weight"].shape[0]
        text = Qwen2Config(
            **{key: config[key] for key in _QWEN_KEYS if key in config},
            tie_word_embeddings=config.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise RewardCheckpointError(f"no tensor {error}; the checkpoint holds no vision tower") from error
    if width % HEAD_WIDTH:
        raise RewardCheckpointError(f"vision tower: width {width} is no multiple of the heads' {HEAD_WIDTH}")
    layers = {
        name.removeprefix(f"{_TOWER}encoder.layers.").split(".")[0] for name in weights if "encoder.layers" in name
    }
    vision = SiglipVisionConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=len(layers), patch_size=patch,
        num_attention_heads=width // HEAD_WIDTH, vision_use_head=False,
        image_size=_image_size(config, patch, patches),
    )  # fmt: skip
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=text, vision_feature_layer=-1, vision_feature_select_strategy="full",
        tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip


def _image_size(config: Mapping[str, Any], patch: int, patches: int) -> int:
    """The tower's name ends in it: 384 pixels of siglip-so400m-patch14-384 are 27 patches and a rest."""
    name = str(config.get("mm_vision_tower"))
    number = re.search(r"(\d+)/?$", name)
    if number is None or (int(number[1]) // patch) ** 2 != patches:
        raise RewardCheckpointError(
            f"config.json: mm_vision_tower: {name!r} does not end in a picture size that makes {patches} patches "
            f"of {patch} pixels"
        )
    return int(number[1])
