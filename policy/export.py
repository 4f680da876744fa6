"""Writing Janus checkpoints in either layout, tensor by tensor."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor

from policy.checkpoint import Checkpoint, Layout
from policy.errors import CheckpointError
from policy.original_config import original_config
from policy.original_layout import hf_names, place_of, to_original
from policy.side_files import copy_side_files, hf_side_files, original_side_files
from policy.weight_files import SHARD_BYTES, TensorInfo, write_weights

DROPPED = "vision_model.vision_tower.attn_pool.*, gen_vision_model.quantize.codebook_used"
"""Tensors that only the original layout has; neither text nor pictures depend on them."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export: number of tensors, bytes, and the tensors that it left out ("" for none)."""

    tensors: int
    bytes: int
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class _Source:
    """Tensors under Hugging Face names, from files or from a model."""

    config: transformers.JanusConfig
    infos: dict[str, TensorInfo]
    read: Callable[[str], Tensor]


def export_checkpoint(
    source: Checkpoint, out: str | Path, to: Layout, base: Checkpoint | None = None, shard_bytes: int = SHARD_BYTES
) -> Exported:
    """Write a checkpoint in the layout `to` into the folder `out`, in the number formats of `source`.

    Tensors that only the original layout has come from `source` or from `base`, an original checkpoint of the same
    sizes. `base` then also provides config and tokenizer files. config.json is written last.

    Raises:
        CheckpointError: `out` holds files already, or `base` is not an original checkpoint of the same sizes.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not empty; export writes into a folder of its own")
    extras = base or (source if source.layout == "original" else None)
    if base is not None:
        _check_base(source, base)
    out.mkdir(parents=True, exist_ok=True)
    tensors = _Source(source.config, source.infos(), source.tensor)
    if to == "hf":
        copy_side_files(source.folder, out)
        if source.layout == "original":
            hf_side_files(out, source.config)
        left_out = ", ".join(source.dropped[:3]) + (", ..." if len(source.dropped) > 3 else "")
        return _write_hf(out, tensors, left_out, shard_bytes)
    copy_side_files((base or source).folder, out)
    if extras is None:
        original_side_files(out, source.config)
    return _write_original(out, tensors, extras, shard_bytes)


def save_hf(
    model: transformers.JanusForConditionalGeneration,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write a model in the Hugging Face layout, in its own number format."""
    source = _of_model(model)
    return save_hf_tensors(model, tokenizer, folder, source.infos, source.read, shard_bytes)


def save_hf_tensors(
    model: transformers.JanusForConditionalGeneration,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: str | Path,
    infos: dict[str, TensorInfo],
    read: Callable[[str], Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """As `save_hf`, for tensors that differ from the model's: `read` gives each once, as `infos` describes it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.generation_config.to_json_file(folder / "generation_config.json")  # as it is, without a verdict on it
    return _write_hf(folder, _Source(model.config, infos, read), "", shard_bytes)


def save_original(
    model: transformers.JanusForConditionalGeneration,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: str | Path,
    base: Checkpoint | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write a model in the original layout, in its own number format; `base` as for `export_checkpoint`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    original_side_files(folder, model.config)
    return _write_original(folder, _of_model(model), base, shard_bytes)


def _write_hf(folder: Path, source: _Source, left_out: str, shard_bytes: int) -> Exported:
    write_weights(folder, source.infos, source.read, shard_bytes)
    config = copy.deepcopy(source.config)
    config.architectures = ["JanusForConditionalGeneration"]
    for part in (config, config.text_config, config.vision_config, config.vq_config):
        part.dtype = source.infos["lm_head.weight"].dtype
    config.save_pretrained(folder)
    return Exported(len(source.infos), sum(info.bytes for info in source.infos.values()), left_out)


def _write_original(folder: Path, source: _Source, extras: Checkpoint | None, shard_bytes: int) -> Exported:
    names = dict.fromkeys(place_of(name).name for name in source.infos)
    infos = {name: _joined(name, source.infos) for name in names}
    kept = {name: extras.files.tensors[name] for name in extras.dropped} if extras else {}

    def read(name: str) -> Tensor:
        if extras is not None and name in kept:
            return extras.files.read(name)
        return to_original(name, [source.read(part) for part in hf_names(name)])

    write_weights(folder, infos | kept, read, shard_bytes)
    if extras:
        config = json.loads((extras.folder / "config.json").read_text(encoding="utf-8"))
    else:
        dtype = str(source.infos["lm_head.weight"].dtype).removeprefix("torch.")
        config = original_config(source.config, dtype)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    size = sum(info.bytes for info in (infos | kept).values())
    return Exported(len(infos) + len(kept), size, "" if kept else DROPPED)


def _joined(original: str, infos: dict[str, TensorInfo]) -> TensorInfo:
    parts = [infos[name] for name in hf_names(original)]
    empty = to_original(original, [torch.empty(part.shape, dtype=part.dtype, device="meta") for part in parts])
    return TensorInfo(tuple(empty.shape), empty.dtype)


def _of_model(model: transformers.JanusForConditionalGeneration) -> _Source:
    state = model.state_dict()
    infos = {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in state.items()}
    return _Source(model.config, infos, state.__getitem__)


def _check_base(source: Checkpoint, base: Checkpoint) -> None:
    if base.layout != "original":
        raise CheckpointError(f"--base {base.folder} is in the Hugging Face layout; give one in the original layout")
    ours, theirs = source.shapes(), base.shapes()
    wrong = [name for name in ours if ours[name] != theirs.get(name)]
    if wrong:
        raise CheckpointError(
            f"--base {base.folder} is a Janus of another size: {len(wrong)} tensors differ, "
            f"first {wrong[0]}: {list(theirs.get(wrong[0], ()))} instead of {list(ours[wrong[0]])}"
        )
