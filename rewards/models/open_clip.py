"""open_clip's state dict of a two-tower ViT CLIP, in the names and shapes of transformers' CLIPModel.

Sizes are read off the tensors. Heads are not among them: the vision tower's are 80 wide and the text tower's 64, as
in ViT-H-14, the model of HPS v2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rewards.models.checkpoint import RewardCheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import CLIPConfig

VISION_HEAD_WIDTH = 80
TEXT_HEAD_WIDTH = 64

_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_REST = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_TOWERS = {
    "transformer.resblocks.": "text_model.encoder.layers.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
}


def to_transformers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename, transpose the projections, and split each fused attention input into query, key and value.

    Raises:
        RewardCheckpointError: a tensor that a ViT CLIP of open_clip does not have.
    """
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name in _REST:
            converted[_REST[name]] = tensor
        elif name in _TRANSPOSED:
            converted[_TRANSPOSED[name]] = tensor.T.contiguous()
        else:
            converted |= _layer_tensors(name, tensor)
    return converted


def _layer_tensors(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    for prefix, new_prefix in _TOWERS.items():
        if not name.startswith(prefix):
            continue
        number, _, part = name.removeprefix(prefix).partition(".")
        if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
            kind = part.rpartition("_")[2]
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{new_prefix}{number}.self_attn.{third}_proj.{kind}": piece for third, piece in thirds}
        module, _, kind = part.rpartition(".")
        if module in _LAYER:
            return {f"{new_prefix}{number}.{_LAYER[module]}.{kind}": tensor}
    raise RewardCheckpointError(f"tensor {name!r} does not belong to a ViT CLIP of open_clip")


def clip_config(state: Mapping[str, torch.Tensor], bos_token_id: int, eos_token_id: int) -> CLIPConfig:
    """The config of the CLIPModel that `to_transformers(state)` fits into; exact GELU, as in open_clip.

    Raises:
        RewardCheckpointError: a tensor that tells a size is missing, or a tower's width is no multiple of its heads'.
    """
    from transformers import CLIPConfig

    try:
        vocabulary, text_width = state["token_embedding.weight"].shape
        vision_width, _, _, patch = state["visual.conv1.weight"].shape
        side = int((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        return CLIPConfig(
            projection_dim=state["visual.proj"].shape[1],
            text_config={
                **_tower(state, "transformer.resblocks.", text_width, TEXT_HEAD_WIDTH),
                "vocab_size": vocabulary,
                "max_position_embeddings": state["positional_embedding"].shape[0],
                "bos_token_id": bos_token_id,
                "eos_token_id": eos_token_id,
            },
            vision_config={
                **_tower(state, "visual.transformer.resblocks.", vision_width, VISION_HEAD_WIDTH),
                "patch_size": patch,
                "image_size": side * patch,
            },
        )
    except KeyError as error:
        raise RewardCheckpointError(
            f"no tensor {error} in the state dict; it is not a ViT CLIP of open_clip"
        ) from error


def _tower(state: Mapping[str, torch.Tensor], prefix: str, width: int, head_width: int) -> dict[str, Any]:
    if width % head_width:
        raise RewardCheckpointError(f"{prefix}*: width {width} is no multiple of the heads' {head_width}")
    return {
        "hidden_size": width,
        "intermediate_size": state[f"{prefix}0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": len({name.split(".")[prefix.count(".")] for name in state if name.startswith(prefix)}),
        "num_attention_heads": width // head_width,
        "hidden_act": "gelu",
    }
