"""Checkpoints of reward models: checks without loading, and loading onto a device.

Nothing here imports torch or transformers until a model is really loaded or counted.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rewards.base import Reward
from rewards.config import Scoring

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


class RewardCheckpointError(ValueError):
    """A checkpoint that cannot be used; names the option, the folder or file, and what is wrong."""


class CheckpointReward(Reward):
    """A reward whose model lies at its option `checkpoint`, a folder or a file."""

    @classmethod
    def parameters(cls, options: Mapping[str, Any]) -> int:
        """Parameters of the whole model."""
        return count_parameters(Path(options["checkpoint"]))


def require_files(folder: Path, option: str, what: str, *names: str | Sequence[str]) -> None:
    """Check that each name exists; of several names in one entry, one is enough. Names may be glob patterns.

    Raises:
        RewardCheckpointError: the folder or a file is missing.
    """
    if not folder.is_dir():
        raise RewardCheckpointError(f"{option}: {folder} is not a folder; give the folder of {what}")
    for name in names:
        either = [name] if isinstance(name, str) else list(name)
        if not any(any(folder.glob(pattern)) for pattern in either):
            raise RewardCheckpointError(
                f"{option}: {folder} holds no {' or '.join(either)}; give the folder of {what}"
            )


def read_config(folder: Path, option: str, *model_types: str) -> dict[str, Any]:
    """config.json, whose model_type must be one of those given, where any are.

    Raises:
        RewardCheckpointError: it cannot be read, or belongs to another kind of model.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewardCheckpointError(f"{option}: {path} cannot be read: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or (model_types and found not in model_types):
        raise RewardCheckpointError(f"{option}: {path} is of model type {found!r}, not {' or '.join(model_types)}")
    return config


def require_dtype(options: Mapping[str, Any]) -> None:
    """
    Raises:
        RewardCheckpointError: `dtype` is none of DTYPES.
    """
    if options.get("dtype", "float32") not in DTYPES:
        raise RewardCheckpointError(f"dtype: {options['dtype']!r} is none of {', '.join(DTYPES)}")


def require_scoring(options: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: `scoring` is no known set of rules.
    """
    if options.get("scoring", "paper") not in get_args(Scoring):
        raise ValueError(f"scoring: {options['scoring']!r} is none of {', '.join(get_args(Scoring))}")


def count_parameters(path: Path) -> int:
    """Elements of all tensors in a folder's weight files, or in one file, from their headers.

    Raises:
        RewardCheckpointError: no weights there.
    """
    files = (
        [path] if path.is_file() else sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    )
    if not files:
        raise RewardCheckpointError(f"{path} holds no *.safetensors and no pytorch_model*.bin")
    return sum(_in_safetensors(file) if file.suffix == ".safetensors" else _in_pickle(file) for file in files)


def best_device() -> str:
    """The GPU if this process has one (a replica with `gpus` above 0 does), else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_dtype(name: str) -> torch.dtype:
    """One of DTYPES, as torch's."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_model(model_class: Any, checkpoint: str | None, **arguments: Any) -> Any:
    """`model_class.from_pretrained` from local files, in eval mode on `best_device`, with every weight in place.

    Raises:
        RewardCheckpointError: weights are missing or have another shape; transformers would initialise them randomly.
    """
    model, info = model_class.from_pretrained(
        checkpoint, local_files_only=True, output_loading_info=True, **arguments
    )
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        where = checkpoint or "the converted checkpoint"
        raise RewardCheckpointError(f"{where}: {len(wrong)} tensors missing or misshapen: {', '.join(wrong[:5])}")
    return model.to(best_device()).eval()


def _in_safetensors(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _in_pickle(file: Path) -> int:
    import torch

    loaded = torch.load(file, map_location="meta", weights_only=True)
    tensors = loaded.get("state_dict", loaded)
    return sum(tensor.numel() for tensor in tensors.values() if hasattr(tensor, "numel"))
