"""Tiny random reward models in the file layouts of the real ones, so that all code runs without real weights.

True architectures and tokenizers, a few hundred kilobytes each, made in seconds. Their scores mean nothing:

    write_tiny_rewards("checkpoints", seed=0)   # hps/, grounding_dino/, git/, llava_qwen/
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.models.tiny_tokenizers import bert_tokenizer, clip_tokenizer, qwen_tokenizer

if TYPE_CHECKING:
    import torch

HPS_FILE = "HPS_v2.1_compressed.pt"
GAIN = 2.0  # of the usual 1 / sqrt(inputs): random, but far from the same answer to everything


def write_tiny_rewards(folder: str | Path, seed: int = 0) -> dict[str, dict[str, str]]:
    """Write all of them; returns the `options` of each class of `rewards`, by its name in lower case."""
    folder = Path(folder)
    hps = write_tiny_hps(folder / "hps", seed)
    return {
        "hps": {"checkpoint": str(hps), "tokenizer": str(hps.parent)},
        "grounding_dino": {"checkpoint": str(write_tiny_grounding_dino(folder / "grounding_dino", seed))},
        "git_vqa": {"checkpoint": str(write_tiny_git(folder / "git", seed))},
        "orm": {"checkpoint": str(write_tiny_llava_qwen(folder / "llava_qwen", seed))},
    }


def write_tiny_hps(folder: str | Path, seed: int = 0) -> Path:
    """HPS_v2.1_compressed.pt, an open_clip state dict of 32x32 pictures, with a CLIP tokenizer; returns the file."""
    import torch

    folder = _made(folder)
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(folder)
    state = dict(open_clip_tensors(_Random(seed), len(tokenizer), width=64, vision_width=80, layers=2, embed=32))
    torch.save({"state_dict": state, "epoch": 0}, folder / HPS_FILE)
    return folder / HPS_FILE


def write_tiny_grounding_dino(folder: str | Path, seed: int = 0) -> Path:
    """IDEA-Research/grounding-dino-tiny's folder: pictures of 64 pixels, 24 queries."""
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig
    from transformers import GroundingDinoImageProcessorPil as Processor

    folder = _made(folder)
    tokenizer = bert_tokenizer()
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    swin = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**swin, out_indices=[2, 3, 4]),
        text_config=BertConfig(**text, vocab_size=len(tokenizer), max_position_embeddings=512),
        num_queries=24, d_model=64, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4,
    )  # fmt: skip
    model = _seeded(GroundingDinoForObjectDetection, config, seed, spare=("sampling_offsets", "reference_points"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Processor(size={"shortest_edge": 64, "longest_edge": 106}).save_pretrained(folder)
    return folder


def write_tiny_git(folder: str | Path, seed: int = 0) -> Path:
    """microsoft/git-large-vqav2's folder: pictures of 32 pixels."""
    from transformers import CLIPImageProcessorPil, GitConfig, GitForCausalLM

    folder = _made(folder)
    tokenizer = bert_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    config = GitConfig(vision_config=vision, **sizes, vocab_size=len(tokenizer), max_position_embeddings=128)
    _seeded(GitForCausalLM, config, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return folder


def write_tiny_llava_qwen(folder: str | Path, seed: int = 0) -> Path:
    """The folder of T2I-R1's judge: two shards with LLaVA-NeXT's names, pictures of 28 pixels (3x3 patches and 4)."""
    from safetensors.torch import save_file

    folder = _made(folder)
    tokenizer = qwen_tokenizer()
    tokenizer.save_pretrained(folder)
    config = {
        "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen", "vocab_size": len(tokenizer),
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "rope_theta": 1000000.0, "tie_word_embeddings": False, "image_aspect_ratio": "pad",
        "mm_hidden_size": 72, "mm_patch_merge_type": "spatial_unpad", "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_tower": "google/siglip-tiny-patch8-28",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = dict(llava_qwen_tensors(_Random(seed), config, vision_layers=2, vision_inner=144, patch=8, patches=9))
    names = [f"model-0000{shard}-of-00002.safetensors" for shard in (1, 2)]
    where = {name: names[index % 2] for index, name in enumerate(tensors)}
    for file in names:
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


class _Random:
    """Seeded normal tensors, scaled by their inputs; vectors are small."""

    def __init__(self, seed: int) -> None:
        import torch

        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        import torch

        scale = GAIN / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
        return torch.randn(shape, generator=self._generator) * scale


def _made(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _seeded(model_class: Any, config: Any, seed: int, spare: tuple[str, ...] = ()) -> Any:
    """A random model; parameters with one of `spare` in their names keep their own initialisation."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
    random = _Random(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not any(part in name for part in spare):
                parameter.copy_(random(*parameter.shape))
    return model


def open_clip_tensors(
    random: Callable[..., torch.Tensor],
    vocabulary: int,
    width: int,
    vision_width: int,
    layers: int,
    embed: int,
    vision_layers: int | None = None,
    patch: int = 8,
    patches: int = 16,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of an open_clip ViT, `random(*shape)` each."""
    yield "positional_embedding", random(77, width)
    yield "text_projection", random(width, embed)
    yield "logit_scale", random()
    yield "visual.class_embedding", random(vision_width)
    yield "visual.positional_embedding", random(patches + 1, vision_width)
    yield "visual.proj", random(vision_width, embed)
    yield "visual.conv1.weight", random(vision_width, 3, patch, patch)
    yield "token_embedding.weight", random(vocabulary, width)
    yield from _norm(random, "ln_final", width)
    yield from _norm(random, "visual.ln_pre", vision_width)
    yield from _norm(random, "visual.ln_post", vision_width)
    towers = (("transformer", width, layers), ("visual.transformer", vision_width, vision_layers or layers))
    for tower, inner, depth in towers:
        for at in (f"{tower}.resblocks.{layer}." for layer in range(depth)):
            yield f"{at}attn.in_proj_weight", random(3 * inner, inner)
            yield f"{at}attn.in_proj_bias", random(3 * inner)
            yield from _linear(random, f"{at}attn.out_proj", inner, inner)
            yield from _linear(random, f"{at}mlp.c_fc", 4 * inner, inner)
            yield from _linear(random, f"{at}mlp.c_proj", inner, 4 * inner)
            yield from _norm(random, f"{at}ln_1", inner)
            yield from _norm(random, f"{at}ln_2", inner)


def llava_qwen_tensors(
    random: Callable[..., torch.Tensor],
    config: Mapping[str, Any],
    vision_layers: int,
    vision_inner: int,
    patch: int,
    patches: int,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a llava_qwen checkpoint, `random(*shape)` each."""
    hidden, inner, vision = config["hidden_size"], config["intermediate_size"], config["mm_hidden_size"]
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", random(config["vocab_size"], hidden)
    yield "lm_head.weight", random(config["vocab_size"], hidden)
    yield "model.norm.weight", 1 + random(hidden)
    yield "model.image_newline", random(hidden)
    for at in (f"model.layers.{layer}." for layer in range(config["num_hidden_layers"])):
        for name, width in (("q", hidden), ("k", key_value), ("v", key_value)):
            yield from _linear(random, f"{at}self_attn.{name}_proj", width, hidden)
        yield f"{at}self_attn.o_proj.weight", random(hidden, hidden)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield f"{at}mlp.{name}_proj.weight", random(*shape)
        yield f"{at}input_layernorm.weight", 1 + random(hidden)
        yield f"{at}post_attention_layernorm.weight", 1 + random(hidden)
    yield from _linear(random, "model.mm_projector.0", hidden, vision)
    yield from _linear(random, "model.mm_projector.2", hidden, hidden)
    tower = "model.vision_tower.vision_tower.vision_model."
    yield f"{tower}embeddings.patch_embedding.weight", random(vision, 3, patch, patch)
    yield f"{tower}embeddings.patch_embedding.bias", random(vision)
    yield f"{tower}embeddings.position_embedding.weight", random(patches, vision)
    yield from _norm(random, f"{tower}post_layernorm", vision)
    for at in (f"{tower}encoder.layers.{layer}." for layer in range(vision_layers)):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(random, f"{at}self_attn.{name}", vision, vision)
        yield from _linear(random, f"{at}mlp.fc1", vision_inner, vision)
        yield from _linear(random, f"{at}mlp.fc2", vision, vision_inner)
        yield from _norm(random, f"{at}layer_norm1", vision)
        yield from _norm(random, f"{at}layer_norm2", vision)


def _norm(random: Callable[..., torch.Tensor], name: str, width: int) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}.weight", 1 + random(width)
    yield f"{name}.bias", random(width)


def _linear(
    random: Callable[..., torch.Tensor], name: str, outputs: int, inputs: int
) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}.weight", random(outputs, inputs)
    yield f"{name}.bias", random(outputs)
