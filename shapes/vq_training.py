"""Trains the tiny VQ of the shapes world: an autoencoder first, then vector quantisation with a readable codebook.

In this world every thing covers 2x2 image tokens, so a codebook can hold one code for each quarter of each thing and
one for the background: 161 of 256 codes, `scene_codes`. After the autoencoder steps a code starts at the mean
encoding of its quarter; from then on the decoder learns from codes, and the encoder learns to choose them. So a
picture has exactly one token sequence, not thousands that depend on neighbouring things; therefore a language model
of 0.8 M parameters can learn to draw in minutes. A code keeps everything except a thing's size.

transformers' JanusVQVAE passes no gradient to its encoder and normalises its codebook in `decode` only, so the
training forward is written out here, and the codebook is stored normalised: then the class's own `encode` (nearest
by Euclid's distance) and `decode` agree with it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusVQVAE

from shapes.renderer import render
from shapes.world import CELL, GRID, THINGS, Asked, Scene, place

log = logging.getLogger(__name__)

BACKGROUND_CODE = 0
CODES = 1 + 4 * len(THINGS)
_THING_NUMBER = {thing: number for number, thing in enumerate(THINGS)}


@dataclass(frozen=True)
class VQRecipe:
    """Steps and sizes of the VQ training."""

    autoencoder_steps: int = 200
    steps: int = 900
    batch: int = 8
    learning_rate: float = 2e-3
    crowded: float = 0.6  # share of the steps whose pictures all hold four things
    box_weight: float = 8.0  # loss weight of pixels in and next to a thing's box
    code_sharpness: float = 10.0  # inverse temperature of the cosines by which the encoder chooses a code


def scene_codes(scene: Scene) -> list[int]:
    """The image tokens of a scene, row by row: 1 + 4 x thing + quarter, and 0 for the background."""
    codes = [[BACKGROUND_CODE] * GRID for _ in range(GRID)]
    for placed in scene:
        for quarter in range(4):
            row, column = placed.y // CELL - 1 + quarter // 2, placed.x // CELL - 1 + quarter % 2
            codes[row][column] = 1 + 4 * _THING_NUMBER[placed.thing] + quarter
    return [code for row in codes for code in row]


def to_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in -1..1, contiguous (strided input makes convolutions crawl)."""
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0).contiguous()


def random_scene(random: Random, count: int | None = None) -> Scene:
    """`count` things (1 to 4 at random when None); a third of the scenes repeat one thing, as counting does."""
    count = count or random.randint(1, 4)
    things = random.choices(THINGS, k=count)
    return place(Asked(tuple(things if random.random() < 2 / 3 else things[:1] * count)), random)


def _batch(random: Random, size: int, count: int | None) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, 48, 48] and their codes [B, 6, 6]."""
    scenes = [random_scene(random, count) for _ in range(size)]
    codes = torch.tensor([scene_codes(scene) for scene in scenes]).view(size, GRID, GRID)
    return to_pixels(np.stack([render(scene) for scene in scenes])), codes


def _latents(vq: JanusVQVAE, pixels: Tensor) -> Tensor:
    """Unit encodings [B, 6, 6, D]."""
    return F.normalize(vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1), dim=-1)


def _decode(vq: JanusVQVAE, latents: Tensor) -> Tensor:
    """Encodings [B, 6, 6, D] -> pixels [B, 3, 48, 48]."""
    return vq.decoder(vq.post_quant_conv(latents.permute(0, 3, 1, 2).contiguous()))


def _picture_loss(output: Tensor, pixels: Tensor, codes: Tensor, box_weight: float) -> Tensor:
    """Mean of |error| + error², pixels in and next to a thing's box weighing more: most of a picture is grey."""
    boxes = (codes != BACKGROUND_CODE)[:, None].float().repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    weight = 1.0 + (box_weight - 1.0) * F.max_pool2d(boxes, 5, stride=1, padding=2)
    error = output - pixels
    return (weight * (error.abs() + error.square())).sum() / (3 * weight.sum())


@torch.no_grad()
def _start_codebook(vq: JanusVQVAE, random: Random) -> None:
    """Put each code at the mean encoding of what it stands for."""
    latents, codes = [], []
    for _ in range(24):
        pixels, cells = _batch(random, 64, 4)
        latents.append(_latents(vq, pixels).flatten(0, 2))
        codes.append(cells.flatten())
    weight = vq.quantize.embedding.weight
    sums = torch.zeros_like(weight).index_add_(0, torch.cat(codes), torch.cat(latents))
    weight[:CODES] = F.normalize(sums, dim=-1)[:CODES]


def _code_loss(latents: Tensor, codebook: Tensor, codes: Tensor, sharpness: float) -> Tensor:
    """Cross-entropy of choosing the right code by cosine; spare codes compete too."""
    logits = sharpness * latents @ F.normalize(codebook.detach(), dim=-1).T
    return F.cross_entropy(logits.flatten(0, 2), codes.flatten())


def train_vq(vq: JanusVQVAE, recipe: VQRecipe, seed: int) -> None:
    """Train `vq` in place and leave it in eval mode, with a normalised codebook."""
    random = Random(seed)
    torch.manual_seed(seed)
    for module in vq.modules():
        if isinstance(module, nn.Conv2d):  # the class's own start, std 0.02, hardly lets a signal through
            module.reset_parameters()
    vq.train()
    total = recipe.autoencoder_steps + recipe.steps
    optimizer = torch.optim.AdamW(vq.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=total, pct_start=0.05, final_div_factor=100
    )
    codebook = vq.quantize.embedding.weight
    began = time.monotonic()
    for step in range(total):
        pixels, codes = _batch(random, recipe.batch, 4 if step < recipe.crowded * total else None)
        if step == recipe.autoencoder_steps:
            _start_codebook(vq, random)
        latents = _latents(vq, pixels)
        code_loss = torch.zeros(())
        entries = latents
        if step >= recipe.autoencoder_steps:
            code_loss = _code_loss(latents, codebook, codes, recipe.code_sharpness)
            entries = F.normalize(codebook, dim=-1)[codes]
        picture_loss = _picture_loss(_decode(vq, entries), pixels, codes, recipe.box_weight)
        optimizer.zero_grad(set_to_none=True)
        (picture_loss + 0.1 * code_loss).backward()
        nn.utils.clip_grad_norm_(vq.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == total - 1:
            log.info(
                "vq step %d/%d: picture loss %.4f, code loss %.4f, %.0f s",
                step, total, picture_loss.item(), code_loss.item(), time.monotonic() - began,
            )  # fmt: skip
    with torch.no_grad():
        codebook.copy_(F.normalize(codebook, dim=-1))
        codebook[CODES:] = codebook[BACKGROUND_CODE]  # a spare code, should one be drawn, shows nothing
    vq.eval()
