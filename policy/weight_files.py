"""The tensors of a folder of weight files: single or sharded, safetensors or PyTorch's own format."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from policy.errors import CheckpointError

SHARD_BYTES = 5_000_000_000
_FORMATS = ("model.safetensors", "pytorch_model.bin")  # in order of preference; each may have an index of shards
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The facts about a stored tensor that are known without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class WeightFiles:
    """Named tensors of a folder, read one at a time through memory maps.

    `tensors` lists the tensors in the files' order, which is the fastest order to read.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            CheckpointError: no weights, a shard is missing, or a file is cut short or damaged.
        """
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        self._file: dict[str, Path] = {}
        self._pickled: tuple[Path, dict[str, Tensor]] | None = None
        for path in weight_files(folder):
            for name, info in self._contents(path).items():
                self.tensors[name] = info
                self._file[name] = path

    def read(self, name: str) -> Tensor:
        """One tensor, mapped into memory rather than copied: do not write to it.

        Each read of a safetensors file creates its own map, which is released with the tensor. So a process that
        reads tensors one by one never holds more than one of them. PyTorch's format is mapped file by file.
        """
        path = self._file[name]
        if path.suffix != ".safetensors":
            return self._load(path)[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    def _contents(self, path: Path) -> dict[str, TensorInfo]:
        if path.suffix != ".safetensors":
            return {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in self._load(path).items()}
        try:
            with safe_open(path, framework="pt") as file:
                parts = {name: file.get_slice(name) for name in file.offset_keys()}
                return {
                    name: TensorInfo(tuple(part.get_shape()), _DTYPES[part.get_dtype()])
                    for name, part in parts.items()
                }
        except KeyError as error:
            raise CheckpointError(f"{path}: tensors of number format {error} are not read here") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} ({path.stat().st_size} bytes) is cut short or damaged ({error}); fetch it again"
            ) from error

    def _load(self, path: Path) -> dict[str, Tensor]:
        if self._pickled is None or self._pickled[0] != path:
            self._pickled = None
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                raise CheckpointError(
                    f"{path} ({path.stat().st_size} bytes) is cut short or damaged ({_first_line(error)}); "
                    "fetch it again"
                ) from error
            if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
                raise CheckpointError(f"{path} holds no state dict: a table of tensors by name")
            self._pickled = (path, loaded)
        return self._pickled[1]


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, safetensors preferred, without opening any.

    Raises:
        CheckpointError: there are none, or the index names shards that are missing.
    """
    for name in _FORMATS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = _shards(index)
            missing = [path.name for path in files if not path.is_file()]
            if missing:
                raise CheckpointError(
                    f"{folder}: {len(missing)} of {len(files)} weight files that {index.name} names are missing: "
                    f"{', '.join(missing[:5])}"
                )
            return files
        if (folder / name).is_file():
            return [folder / name]
    names = ", ".join(f"{name} or {name}.index.json" for name in _FORMATS)
    raise CheckpointError(f"{folder} holds no weights: none of {names}")


def write_weights(
    folder: Path, tensors: dict[str, TensorInfo], read: Callable[[str], Tensor], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write safetensors files, in shards of `shard_bytes`, replacing earlier ones; holds one tensor at a time.

    `read` gives a tensor by its name; its shape and number format must be those in `tensors`.
    """
    for stale in [*folder.glob("model-*-of-*.safetensors"), *folder.glob("model.safetensors*")]:
        stale.unlink()
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in tensors.items():
        if shards[-1] and size + info.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.bytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file, {name: tensors[name] for name in names}, read)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(info.bytes for info in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(path: Path, tensors: dict[str, TensorInfo], read: Callable[[str], Tensor]) -> None:
    """The safetensors format: length of the header, header (JSON), then the tensors' bytes, widest format first."""
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        info = tensors[name]
        start, end = end, end + info.bytes
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = read(name)
            assert (tuple(tensor.shape), tensor.dtype) == (tensors[name].shape, tensors[name].dtype), name
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _shards(index: Path) -> list[Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [index.with_name(Path(name).name) for name in dict.fromkeys(sorted(names))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of weight files: {error}") from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0]
