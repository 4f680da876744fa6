"""Published weights into a vLLM engine, through vLLM's own weight-transfer interface.

    backend = register()                                   # before the LLM is made
    llm = LLM(..., weight_transfer_config=WeightTransferConfig(backend=backend), worker_extension_cls=WORKER)
    version = apply_to_vllm(llm, published, deadline_s=60.0)     # -> published.version

The first weights, every sync and a restart are the same path: make the LLM with `load_format="dummy"` and apply.
The engine has to live in the caller's process (VLLM_ENABLE_V1_MULTIPROCESSING=0). A single worker does so too, and
gets tensors by reference; the workers of a tensor-parallel engine are processes of their own, which map tensors from
a file in shared memory and take a shard of each.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from policy.lora import AdapterError, BaseWeights, received_adapter
from transport.errors import WeightsHalfWritten, WeightTransferError
from transport.weights.channel import Published, WeightReceiver
from transport.weights.object_store import ObjectStoreReceiver

if TYPE_CHECKING:
    from vllm import LLM

BACKEND = "bicot"
WORKER = f"{__name__}.ChannelWorker"
CHUNK_BYTES = 1 << 30
"""Of tensors that lie in shared memory at a time, and one tensor more."""


@cache
def register() -> str:
    """Make the engine known to vLLM, in this process; returns the backend's name. Any number of calls is one."""
    WeightTransferEngineFactory.register_engine(BACKEND, ChannelEngine)
    # It warns at every sync that rotary tables, which no checkpoint holds, "failed to load"; names are checked below.
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
    return BACKEND


def apply_to_vllm(
    llm: LLM,
    published: Published,
    *,
    deadline_s: float,
    receiver: WeightReceiver | None = None,
    base: BaseWeights | None = None,
) -> int:
    """Give `llm` the published weights and forget its prefix cache; returns the version it now has.

    What is published may be a LoRA adapter: it is merged into `base`, the weights of the policy's checkpoint, and
    those that it does not change come from there as well, for vLLM takes all weights or none. They are read and
    merged one by one as vLLM loads them. Version 0 of an adapter is 0, and gives the checkpoint's weights.

    Everything is received and checked before the first weight is touched, so a transfer that fails leaves the engine
    as it was. No request may be running. Blocks for at most `deadline_s` seconds of transfer, plus the copy.

    Raises:
        WeightTransferError: the transfer failed, the weights are not all that the model needs, or do not fit it, or
            requests are running.
        WeightsHalfWritten: it broke off when some weights were replaced.
    """
    if llm.llm_engine.has_unfinished_requests():
        raise WeightTransferError(f"weights {published.version}: vLLM has requests running; sync between batches")
    arrived = list((receiver or ObjectStoreReceiver()).receive(published, deadline_s))
    names, tensors = _whole_weights(published.version, arrived, base)
    llm.init_weight_transfer_engine({"init_info": {"version": published.version, "names": names}})
    try:
        llm.start_weight_update()
        if llm.llm_engine.vllm_config.parallel_config.world_size == 1:
            llm.update_weights({"update_info": {"tensors": tensors}})
        else:
            _share(llm, tensors)
        llm.finish_weight_update(weight_version=str(published.version))
    except Exception as error:
        raise WeightsHalfWritten(
            f"weights {published.version}: vLLM could not load them and is half written; start its actor anew "
            f"({type(error).__name__}: {error})"
        ) from error
    if not llm.reset_prefix_cache():
        raise WeightTransferError(f"weights {published.version}: vLLM did not reset its prefix cache")
    return published.version


def _whole_weights(
    version: int, arrived: list[tuple[str, torch.Tensor]], base: BaseWeights | None
) -> tuple[list[str], Iterable[tuple[str, torch.Tensor]]]:
    """vLLM's names of the weights that arrived, and the weights; an adapter's are merged as they are iterated."""
    try:
        adapter = received_adapter(arrived)
    except AdapterError as error:
        raise WeightTransferError(f"weights {version}: {error}") from error
    if adapter is None:
        tensors = [(target, tensor) for name, tensor in arrived if (target := vllm_name(name)) is not None]
        return [name for name, _ in tensors], tensors
    if base is None:
        raise WeightTransferError(f"weights {version}: an adapter came, and no checkpoint is known to merge it into")
    shapes = base.shapes()
    names = {name: target for name in shapes if (target := vllm_name(name)) is not None}
    for name, shape in adapter.shapes().items():
        if name not in names:
            raise WeightTransferError(f"weights {version}: the language model has no weight {name!r} to adapt")
        if shapes[name] != shape:
            raise WeightTransferError(
                f"weights {version}: {name!r} is {list(shapes[name])}, and the adapter's product {list(shape)}"
            )
    merged = adapter.merged(base.tensor, names)
    return list(names.values()), ((names[name], tensor) for name, tensor in merged)


def _share(llm: LLM, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Hand tensors to workers in other processes, a chunk at a time; each call returns when all have loaded it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="bicot-weights-", dir=memory if memory.is_dir() else None) as folder:
        file = Path(folder) / "chunk.safetensors"
        for chunk in _chunks(tensors):
            save_file({name: tensor.contiguous() for name, tensor in chunk}, file)
            llm.update_weights({"update_info": {"file": str(file)}})
            file.unlink()


def _chunks(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    chunk: list[tuple[str, torch.Tensor]] = []
    for name, tensor in tensors:
        if chunk and sum(one.nbytes for _, one in chunk) >= CHUNK_BYTES:
            yield chunk
            chunk = []
        chunk.append((name, tensor))
    yield chunk


def vllm_name(name: str) -> str | None:
    """The Llama checkpoint name of a Janus `state_dict` name; None for what is not the language model's."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name if name == "lm_head.weight" else None


@dataclass
class ChannelInitInfo(WeightTransferInitInfo):
    """What the next update will hold; checked against the model before anything is touched."""

    version: int
    names: list[str]


@dataclass
class ChannelUpdateInfo(WeightTransferUpdateInfo):
    """Checkpoint-named tensors of this process, or the safetensors file that holds them."""

    tensors: Iterable[tuple[str, torch.Tensor]] = field(default=(), repr=False)
    file: str | None = None


class ChannelEngine(WeightTransferEngine[ChannelInitInfo, ChannelUpdateInfo]):
    """Loads whatever it is handed; which transport brought it is not its business."""

    init_info_cls = ChannelInitInfo
    update_info_cls = ChannelUpdateInfo

    def init_transfer_engine(self, init_info: ChannelInitInfo) -> None:
        """Refuse an update that would leave a layer half written: vLLM fills what is missing with garbage."""
        missing = sorted(set(self._checkpoint_names()) - set(init_info.names))
        if missing:
            raise WeightTransferError(
                f"weights {init_info.version}: {len(missing)} tensors that vLLM's model needs were not published, "
                f"first {missing[0]!r}"
            )

    def start_weight_update(self) -> None:
        """Set the layers up for checkpoint-format weights."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ChannelUpdateInfo) -> None:
        """Load them; vLLM copies each layer when it is complete."""
        self.model.load_weights(load_file(update_info.file).items() if update_info.file else update_info.tensors)

    def finish_weight_update(self) -> None:
        """Finish the layers that hold no checkpoint weights."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Holds nothing."""

    def _checkpoint_names(self) -> Iterator[str]:
        """Names under which the model's parameters stand in a checkpoint: vLLM fuses q, k, v and gate, up."""
        fused: dict[str, list[str]] = self.model.packed_modules_mapping
        for name, _ in self.model.named_parameters():
            module = next((part for part in name.split(".") if part in fused), None)
            yield from [name.replace(module, part) for part in fused[module]] if module else [name]


class ChannelWorker:
    """vLLM imports this class's module into each of its worker processes, which makes the engine known there."""


register()
