"""Makes the shipped checkpoint: a tiny Janus that can plan and draw in the shapes world, with headroom left.

    python -m shapes.warm_start --out FOLDER [--seed 0]

VQ training, then supervised training; figures and minutes are in shapes/README.md.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from policy.config import PolicyConfig
from policy.janus import make_policy, save_policy
from policy.tiny import tiny_janus
from shapes.supervised import SupervisedRecipe, train_supervised
from shapes.tokenizer import TEMPLATES, build_tokenizer
from shapes.vq_training import VQRecipe, train_vq
from shapes.world import SIZE


def warm_start(
    folder: Path, seed: int, vq_recipe: VQRecipe | None = None, supervised: SupervisedRecipe | None = None
) -> None:
    """Train a tiny Janus from scratch and write it to `folder` in float16 (4 MB), in the Hugging Face layout."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = tiny_janus(tokenizer, image_size=SIZE)
    policy = make_policy(model, tokenizer, PolicyConfig(checkpoint=str(folder), templates=TEMPLATES))
    train_vq(model.model.vqmodel, vq_recipe or VQRecipe(), seed)
    train_supervised(policy, supervised or SupervisedRecipe(), seed)
    save_policy(model.half(), tokenizer, folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # more threads than free cores make training many times slower
    arguments.out.mkdir(parents=True, exist_ok=True)
    warm_start(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
