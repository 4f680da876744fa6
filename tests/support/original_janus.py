"""A plain model with the names, shapes and arithmetic of DeepSeek's own Janus modules, as small as asked for.

Written from github.com/deepseek-ai/Janus (janus/models: modeling_vlm, projector, siglip_vit, vq_model) and timm's
AttentionPoolLatent, and not from this project's table of names: what `policy.original_layout` is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


class ResnetBlock(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inner, eps=1e-6)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, outer, eps=1e-6)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(1, 2) * x.shape[1] ** -0.5, -1) @ v
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else F.pad(x, (0, 1, 0, 1)))


def conv_block(inner: int, outer: int, blocks: int, attention: bool) -> nn.Module:
    block = nn.Module()
    block.res = nn.ModuleList(ResnetBlock(inner if i == 0 else outer, outer) for i in range(blocks))
    block.attn = nn.ModuleList(AttnBlock(outer) for _ in range(blocks if attention else 0))
    return block


class Coder(nn.Module):
    """Encoder (up=False) or Decoder (up=True)."""

    def __init__(self, up: bool, base: int, mult: list[int], res: int, latent: int) -> None:
        super().__init__()
        top = base * mult[-1]
        self.conv_in = nn.Conv2d(latent, top, 3, padding=1) if up else nn.Conv2d(3, base, 3, padding=1)
        self.mid = nn.ModuleList([ResnetBlock(top, top), AttnBlock(top), ResnetBlock(top, top)])
        self.conv_blocks = nn.ModuleList()
        levels = list(range(len(mult)))
        inner = top if up else base
        for level in reversed(levels) if up else levels:
            outer = base * mult[level]
            block = conv_block(inner, outer, res + 1 if up else res, level == levels[-1])
            if up and level != 0:
                block.upsample = Resample(outer, True)
            if not up and level != levels[-1]:
                block.downsample = Resample(outer, False)
            self.conv_blocks.append(block)
            inner = outer
        self.norm_out = nn.GroupNorm(32, inner, eps=1e-6)
        self.conv_out = nn.Conv2d(inner, 3 if up else latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The decoder's order: middle, then blocks. (The encoder's is not needed.)"""
        x = self.conv_in(x)
        for layer in self.mid:
            x = layer(x)
        for block in self.conv_blocks:
            for i, res in enumerate(block.res):
                x = res(x)
                if len(block.attn) > 0:
                    x = block.attn[i](x)
            if hasattr(block, "upsample"):
                x = block.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        self.register_buffer("codebook_used", nn.Parameter(torch.rand(65536)))


class VQModel(nn.Module):
    def __init__(self, base: int, mult: list[int], res: int, latent: int, codes: int, width: int) -> None:
        super().__init__()
        self.encoder = Coder(False, base, mult, res, latent)
        self.decoder = Coder(True, base, mult, res, latent)
        self.quantize = Quantizer(codes, width)
        self.quant_conv = nn.Conv2d(latent, width, 1)
        self.post_quant_conv = nn.Conv2d(width, latent, 1)

    def decode_code(self, codes: Tensor, grid: int) -> Tensor:
        entries = F.normalize(self.quantize.embedding.weight, dim=-1)[codes]
        return self.decoder(self.post_quant_conv(entries.reshape(len(codes), grid, grid, -1).permute(0, 3, 1, 2)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, patch: int, grid: int) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.randn(1, grid * grid, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attn_pool = nn.Module()  # made for global_pool "map", and not run: ignore_head
        self.attn_pool.latent = nn.Parameter(torch.randn(1, 1, width))
        self.attn_pool.q = nn.Linear(width, width)
        self.attn_pool.kv = nn.Linear(width, 2 * width)
        self.attn_pool.proj = nn.Linear(width, width)
        self.attn_pool.norm = nn.LayerNorm(width, eps=1e-6)
        self.attn_pool.mlp = Mlp(width, 4 * width)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + self.pos_embed
        return self.norm(self.blocks(x))


class MlpProjector(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inner, outer), nn.GELU(), nn.Linear(outer, outer))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class VisionHead(nn.Module):
    def __init__(self, hidden: int, codes: int) -> None:
        super().__init__()
        self.output_mlp_projector = nn.Linear(hidden, hidden)
        self.vision_head = nn.Linear(hidden, codes)

    def forward(self, x: Tensor) -> Tensor:
        return self.vision_head(F.gelu(self.output_mlp_projector(x)))


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model, and what its config.json tells of them."""

    language: dict[str, int]
    told: dict[str, int]
    """The part of `language` that config.json states."""
    tower: tuple[int, int, int, int]
    """Width, blocks, heads, patch."""
    tower_told: dict[str, Any]
    grid: int
    vq: tuple[int, list[int], int, int]
    """Base channels, multipliers, blocks a level, latent channels."""
    codes: int


_VQ_16 = (128, [1, 1, 2, 2, 4], 2, 256)
_LARGE = {"model_name": "siglip_large_patch16_384"}
_LONG = {"max_position_embeddings": 16384}
_1B = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_hidden_layers": 24,
    "num_key_value_heads": 16, "vocab_size": 102400, **_LONG,
}  # fmt: skip
_7B = {"num_hidden_layers": 30, "vocab_size": 102400, **_LONG}
JANUS_PRO_1B = Sizes(_1B, _1B, (1024, 24, 16, 16), _LARGE, 24, _VQ_16, 16384)
JANUS_PRO_7B = Sizes(
    {**_7B, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32},
    _7B, (1024, 24, 16, 16), _LARGE, 24, _VQ_16, 16384,
)  # fmt: skip


def tiny(vocab: int) -> Sizes:
    """A 4x4 grid, 16 pixels, and sizes that differ from one another wherever they may."""
    told = {
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "vocab_size": vocab,
    }  # fmt: skip
    language = {**told, "intermediate_size": 160, "num_hidden_layers": 2}
    return Sizes(language, told, (48, 2, 3, 4), {"model_name": "tiny", "num_heads": 3}, 4, (32, [1, 2, 2], 2, 24), 96)


class OriginalJanus(nn.Module):
    """MultiModalityCausalLM."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        hidden, codes = sizes.language["hidden_size"], sizes.codes
        self.vision_model = nn.Module()
        self.vision_model.vision_tower = VisionTransformer(*sizes.tower, sizes.grid)
        self.aligner = MlpProjector(sizes.tower[0], hidden)
        self.gen_vision_model = VQModel(*sizes.vq, codes, width=8)
        self.gen_aligner = MlpProjector(8, hidden)
        self.gen_head = VisionHead(hidden, codes)
        self.gen_embed = nn.Embedding(codes, 8)
        self.language_model = LlamaForCausalLM(LlamaConfig(**self.sizes.language))

    def config(self) -> dict[str, Any]:
        """Its config.json, written as the released checkpoints' are."""
        sizes = self.sizes
        hidden, codes = sizes.language["hidden_size"], sizes.codes
        mlp = {"depth": 2, "n_embed": hidden, "projector_type": "mlp_gelu"}
        side = sizes.grid * sizes.tower[3]
        tower = {"image_size": side, "select_feature": "same", "select_layer": -1, **sizes.tower_told}
        head = {"image_token_embed": hidden, "image_token_size": codes, "n_embed": hidden}
        parts = {
            "aligner": ("MlpProjector", {**mlp, "input_dim": sizes.tower[0]}),
            "gen_aligner": ("MlpProjector", {**mlp, "input_dim": 8}),
            "gen_head": ("vision_head", head),
            "gen_vision": ("VQ-16", {"image_token_size": codes, "n_embed": 8}),
            "vision": ("CLIPVisionTower", tower),
        }
        config = {f"{k}_config": {"cls": cls, "model_type": k, "params": p} for k, (cls, p) in parts.items()}
        return config | {
            "architectures": ["MultiModalityCausalLM"],
            "language_config": {"model_type": "llama", "torch_dtype": "bfloat16", **sizes.told},
            "model_type": "multi_modality",
            "torch_dtype": "bfloat16",
        }
