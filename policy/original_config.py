"""Converts the config.json of Janus's original layout (`multi_modality`) to transformers' JanusConfig and back.

The original file is incomplete: it relies on LlamaConfig's defaults, and on DeepSeek's classes for the sizes of
vision tower and VQ model. Missing sizes are derived from the tensors' shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import transformers

Shapes = Mapping[str, tuple[int, ...]]

SIGLIP = {  # vision towers the original names: width, layers, heads, patch
    "siglip_large_patch16_384": (1024, 24, 16, 16),
    "siglip_so400m_patch14_384": (1152, 27, 16, 14),
    "siglip_so400m_patch14_224": (1152, 27, 16, 14),
}
_LANGUAGE = "language_model.model."
_TOWER = "vision_model.vision_tower."
_VQ = "gen_vision_model."
# The keys of the language config that are written out; the others are LlamaConfig's defaults.
_LANGUAGE_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip


def janus_config(
    raw: Mapping[str, Any], shapes: Shapes, special: Mapping[str, int | None]
) -> transformers.JanusConfig:
    """The JanusConfig of an original checkpoint.

    `raw` is its config.json, `shapes` has its tensors' shapes by original name, `special` the ids `bos_token_id`,
    `eos_token_id`, `pad_token_id` and `image_token_id`, which the original leaves to its tokenizer.

    Raises:
        KeyError: a tensor that gives a size is missing.
    """
    tokens = dict(special)
    image_token = tokens.pop("image_token_id")
    return transformers.JanusConfig(
        text_config=_text_config(raw.get("language_config", {}), shapes, tokens),
        vision_config=_vision_config(raw.get("vision_config", {}).get("params", {}), shapes),
        vq_config=_vq_config(shapes),
        tie_word_embeddings=False,
        architectures=["JanusForConditionalGeneration"],
        **({} if image_token is None else {"image_token_id": image_token}),
    )


def original_config(config: transformers.JanusConfig, dtype: str) -> dict[str, Any]:
    """The config.json in `multi_modality` form of a Janus whose weights are stored as `dtype`, e.g. bfloat16."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    language = {key: getattr(text, key) for key in _LANGUAGE_KEYS}
    language |= {"model_type": "llama", "torch_dtype": dtype, "rope_theta": text.rope_parameters["rope_theta"]}

    def part(kind: str, cls: str, **params: Any) -> dict[str, Any]:
        return {"cls": cls, "model_type": kind, "params": params}

    def projector(kind: str, depth: int, input_dim: int, n_embed: int) -> dict[str, Any]:
        sizes = {"depth": depth, "input_dim": input_dim, "n_embed": n_embed, "projector_type": "mlp_gelu"}
        return part(kind, "MlpProjector", **sizes)

    tower = {"image_size": vision.image_size, "select_feature": "same", "select_layer": -1}
    tower |= _tower_name(vision)
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "language_config": language,
        "vision_config": part("vision", "CLIPVisionTower", **tower),
        "aligner_config": projector("aligner", vision.depth, vision.hidden_size, vision.projection_dim),
        "gen_vision_config": part("gen_vision", "VQ-16", image_token_size=vq.num_embeddings, n_embed=vq.embed_dim),
        "gen_aligner_config": projector("gen_aligner", vq.num_hidden_layers, vq.embed_dim, vq.projection_dim),
        "gen_head_config": part(
            "gen_head",
            "vision_head",
            image_token_embed=vq.projection_dim,
            image_token_size=vq.num_embeddings,
            n_embed=vq.image_token_embed_dim,
        ),
    }


def _text_config(
    stated: Mapping[str, Any], shapes: Shapes, tokens: Mapping[str, int | None]
) -> transformers.LlamaConfig:
    vocab, hidden = shapes[f"{_LANGUAGE}embed_tokens.weight"]
    seen = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": shapes[f"{_LANGUAGE}layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": _count(shapes, f"{_LANGUAGE}layers."),
    }
    left_out = {"model_type", "torch_dtype", "dtype", "architectures", "tie_word_embeddings", *tokens}
    named = {key: value for key, value in stated.items() if key not in left_out and not key.startswith("_")}
    return transformers.LlamaConfig(**seen | named | dict(tokens), tie_word_embeddings=False)


def _vision_config(params: Mapping[str, Any], shapes: Shapes) -> transformers.JanusVisionConfig:
    _, positions, width = shapes[f"{_TOWER}pos_embed"]
    patch = shapes[f"{_TOWER}patch_embed.proj.weight"][-1]
    inner = shapes[f"{_TOWER}blocks.0.mlp.fc1.weight"][0]
    ratio = inner / width
    return transformers.JanusVisionConfig(
        hidden_size=width,
        num_hidden_layers=_count(shapes, f"{_TOWER}blocks."),
        num_attention_heads=_heads(params, width),
        image_size=math.isqrt(positions) * patch,
        patch_size=patch,
        mlp_ratio=ratio if int(width * ratio) == inner else (inner + 0.5) / width,
        projection_dim=shapes["aligner.layers.0.weight"][0],
        depth=_depth(shapes, "aligner.layers."),
        num_image_tokens=positions,
    )


def _vq_config(shapes: Shapes) -> transformers.JanusVQVAEConfig:
    codes, embed = shapes[f"{_VQ}quantize.embedding.weight"]
    base, in_channels = shapes[f"{_VQ}encoder.conv_in.weight"][:2]
    latent = shapes[f"{_VQ}quant_conv.weight"][1]
    blocks = f"{_VQ}encoder.conv_blocks."
    levels = [shapes[f"{blocks}{level}.res.0.conv1.weight"][0] // base for level in range(_count(shapes, blocks))]
    return transformers.JanusVQVAEConfig(
        embed_dim=embed,
        num_embeddings=codes,
        latent_channels=latent,
        double_latent=shapes[f"{_VQ}encoder.conv_out.weight"][0] == 2 * latent,
        in_channels=in_channels,
        out_channels=shapes[f"{_VQ}decoder.conv_out.weight"][0],
        base_channels=base,
        channel_multiplier=levels,
        num_res_blocks=_count(shapes, f"{blocks}0.res."),
        projection_dim=shapes["gen_aligner.layers.0.weight"][0],
        num_hidden_layers=_depth(shapes, "gen_aligner.layers."),
        image_token_embed_dim=shapes["gen_head.output_mlp_projector.weight"][1],
    )


def _heads(params: Mapping[str, Any], width: int) -> int:
    """Heads of the vision tower: the config's number, else the named tower's, else heads of width 64."""
    if "num_heads" in params:
        return int(params["num_heads"])
    named = SIGLIP.get(params.get("model_name", ""))
    return named[2] if named and named[0] == width else max(1, width // 64)


def _tower_name(vision: transformers.JanusVisionConfig) -> dict[str, Any]:
    """The original's name of this vision tower; for an unknown tower the head count is written beside the name."""
    sizes = (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.patch_size)
    for name, known in SIGLIP.items():
        if known == sizes:
            return {"model_name": name}
    return {"model_name": "siglip_large_patch16_384", "num_heads": vision.num_attention_heads}


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered modules stand under `prefix`."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)})


def _depth(shapes: Shapes, prefix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(".weight") for name in shapes)
