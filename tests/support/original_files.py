"""Writes `OriginalJanus` as checkpoint folders of every kind: one file or shards, safetensors or PyTorch's format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from original_janus import OriginalJanus, tiny
from safetensors.torch import save_file
from torch import Tensor

from policy.tiny import tiny_tokenizer


def original_janus() -> OriginalJanus:
    """A random model that knows three ids more than its tokenizer, as Janus-Pro does many."""
    torch.manual_seed(1)
    return OriginalJanus(tiny(len(tiny_tokenizer()) + 3)).eval()


def state_of(model: OriginalJanus) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def write_beside(model: OriginalJanus, folder: Path) -> None:
    """Tokenizer and config, as they stand beside the weights of a released checkpoint."""
    tiny_tokenizer().save_pretrained(folder)
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"tokenizer_class": "LlamaTokenizerFast"}))
    (folder / "config.json").write_text(json.dumps(model.config()), encoding="utf-8")


def write_original(model: OriginalJanus, folder: Path) -> Path:
    """A complete folder with the model's own state dict in one safetensors file."""
    save_file(state_of(model), folder / "model.safetensors")
    write_beside(model, folder)
    return folder


def single_bin(state: dict[str, Tensor], folder: Path) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def _shards(state: dict[str, Tensor], folder: Path, stem: str, ext: str, save: Callable[..., None]) -> None:
    names = list(state)
    shards = {f"{stem}-{i + 1:05}-of-00003.{ext}": names[i::3] for i in range(3)}
    for file, held in shards.items():
        save({name: state[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / f"{stem}.{ext}.index.json").write_text(json.dumps(index), encoding="utf-8")


def sharded_bin(state: dict[str, Tensor], folder: Path) -> None:
    _shards(state, folder, "pytorch_model", "bin", torch.save)


def sharded_safetensors(state: dict[str, Tensor], folder: Path) -> None:
    _shards(state, folder, "model", "safetensors", save_file)
