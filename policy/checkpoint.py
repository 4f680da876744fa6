"""Janus checkpoints in both layouts, read as one: Hugging Face names and shapes, one tensor at a time.

    checkpoint = open_checkpoint(folder)
    for name, tensor in checkpoint.tensors(["model.language_model.", "lm_head."]): ...

The layouts are transformers' own (`hf`: model_type janus) and DeepSeek's (`original`: multi_modality; also the one
of T2I-R1's checkpoint). `Checkpoint.dropped` lists the tensors that only the original layout has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers  # imports its model classes on first use, which takes seconds
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from policy.errors import CheckpointError
from policy.original_config import janus_config
from policy.original_layout import Place, from_original, hf_names, is_dropped, place_of
from policy.weight_files import TensorInfo, WeightFiles

Layout = Literal["hf", "original"]
_MODEL_TYPES: dict[str, Layout] = {"janus": "hf", "multi_modality": "original"}
_SHOWN = 5
IMAGE_TOKEN = "<image_placeholder>"


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint folder. Names and shapes are those of JanusForConditionalGeneration's state dict."""

    folder: Path
    layout: Layout
    config: transformers.JanusConfig
    files: WeightFiles = field(repr=False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, without reading any; in the order of `tensors`."""
        return {name: info.shape for name, info in self.infos().items()}

    def infos(self) -> dict[str, TensorInfo]:
        """The stored shape and number format of every tensor, without reading any."""
        found = {}
        for stored, info in self.files.tensors.items():
            empty = torch.empty(info.shape, dtype=info.dtype, device="meta")
            for name, place in self._places(stored):
                found[name] = TensorInfo(tuple(from_original(place, empty).shape), info.dtype)
        return found

    def tensors(self, prefixes: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Every tensor whose name starts with one of `prefixes` (all by default), read one at a time.

        Tensors are memory maps of the files, in the stored number format, on the CPU: copy them, do not write to
        them.
        """
        for stored in self.files.tensors:
            for name, place in self._places(stored):
                if prefixes is None or name.startswith(tuple(prefixes)):
                    yield name, from_original(place, self.files.read(stored))

    def tensor(self, name: str) -> Tensor:
        """One tensor by its name, as `tensors` gives it."""
        place = place_of(name) if self.layout == "original" else Place(name)
        return from_original(place, self.files.read(place.name))

    def stored_name(self, name: str) -> str:
        """The name in the files of the tensor with that Hugging Face name."""
        return place_of(name).name if self.layout == "original" else name

    @property
    def dropped(self) -> list[str]:
        """Names of stored tensors that the Hugging Face layout has no place for; `files.read` reads them."""
        return [name for name in self.files.tensors if is_dropped(name)]

    def _places(self, stored: str) -> list[tuple[str, Place]]:
        """The Hugging Face tensors in each stored tensor, and their places in it."""
        if is_dropped(stored):
            return []
        if self.layout == "hf":
            return [(stored, Place(stored))]
        return [(name, place_of(name)) for name in hf_names(stored)]


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a Janus checkpoint in either layout: reads its config and the list of its tensors, no weights.

    Raises:
        CheckpointError: the folder is no Janus checkpoint, files are missing, cut short or damaged, or the tensors
            do not match the config; the message lists the first of each kind.
    """
    folder = Path(folder)
    layout, raw = read_config(folder)
    files = WeightFiles(folder)
    _check_names(folder, layout, files)
    checkpoint = Checkpoint(folder, layout, _config(folder, layout, raw, files), files)
    _check_tensors(checkpoint)
    return checkpoint


def read_config(folder: Path) -> tuple[Layout, dict[str, Any]]:
    """The layout that config.json names, and its content.

    Raises:
        CheckpointError: the folder or its config is missing, cannot be read, or is not Janus's.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a Janus checkpoint")
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no config.json; give the folder of a Janus checkpoint")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind = raw["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error
    if kind not in _MODEL_TYPES:
        raise CheckpointError(f"{folder} holds a {kind} model, not janus or multi_modality (its original layout)")
    return _MODEL_TYPES[kind], raw


def load_tokenizer(folder: str | Path) -> transformers.PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, exactly as its tokenizer.json says.

    Do not use AutoTokenizer: for the original layout it trusts the class in tokenizer_config.json, and transformers'
    Llama tokenizer splits text differently from Janus's byte-level one.

    Raises:
        CheckpointError: it is missing or cannot be read.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no tokenizer.json (the tokenizer)")
    try:
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error


def _config(folder: Path, layout: Layout, raw: dict[str, Any], files: WeightFiles) -> transformers.JanusConfig:
    special = _special_ids(folder) if layout == "original" else {}
    shapes = {name: info.shape for name, info in files.tensors.items()}
    try:
        config = transformers.JanusConfig.from_dict(raw) if layout == "hf" else janus_config(raw, shapes, special)
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'} does not fit the weights: there is no {error}") from error
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        told = " ".join(str(error).split())
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {told}") from error
    # transformers 5 ties lm_head to the embeddings where a Janus config is silent; Janus has two tensors.
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    return config


def _special_ids(folder: Path) -> dict[str, int | None]:
    tokenizer = load_tokenizer(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return ids | {"image_token_id": tokenizer.get_vocab().get(IMAGE_TOKEN)}


def _check_names(folder: Path, layout: Layout, files: WeightFiles) -> None:
    """Check that the config and the tensors' names have the same layout."""
    hf = any(name.startswith("model.") for name in files.tensors)
    original = any(name.startswith("language_model.") for name in files.tensors)
    if (hf, original) != (layout == "hf", layout == "original"):
        shown = ", ".join(list(files.tensors)[:_SHOWN])
        raise CheckpointError(
            f"{folder}: config.json is of the {layout} layout, the tensors are not: {shown}; "
            "take config and weights from one checkpoint"
        )


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Check that the files have exactly the model's tensors, in its shapes."""
    expected, found = expected_shapes(checkpoint.config), checkpoint.shapes()
    unknown = [name for name in checkpoint.files.tensors if not checkpoint._places(name) and not is_dropped(name)]
    unknown += _stored(checkpoint, [name for name in found if name not in expected])
    missing = _stored(checkpoint, [name for name in expected if name not in found])
    wrong = [
        f"{checkpoint.stored_name(name)} is {list(found[name])} and must be {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("of the wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint.folder}: the tensors are not those of a Janus of its config.json; {'; '.join(problems)}"
        )


def _stored(checkpoint: Checkpoint, names: list[str]) -> list[str]:
    """Stored names, each once: one tensor in the files may be three of the Hugging Face layout."""
    return list(dict.fromkeys(checkpoint.stored_name(name) for name in names))


def expected_shapes(config: transformers.JanusConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict of a Janus with that config; imports its classes, which takes 1 s."""
    with torch.device("meta"):
        model = transformers.JanusForConditionalGeneration(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
