"""Loads published weights into a vLLM engine, through vLLM's own weight-transfer interface.

    backend = register()                                   # before the LLM is made
    llm = LLM(..., weight_transfer_config=WeightTransferConfig(backend=backend), worker_extension_cls=WORKER)
    version = apply_to_vllm(llm, published, deadline_s=60.0)                    # out of the object store
    version = broadcast_to_vllm(llm, published.manifest, seat, deadline_s=60.0)     # every worker receives for itself

The first weights, every sync and a restart use the same path: create the LLM with `load_format="dummy"` and apply.
The engine must live in the caller's process (VLLM_ENABLE_V1_MULTIPROCESSING=0). So does a single worker, which gets
tensors by reference. The workers of a tensor-parallel engine are separate processes: they map tensors from a file in
shared memory and take a shard of each. In a broadcast each worker is a member of the group, and takes its shard of
every bucket as it arrives.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from policy.lora import AdapterError, BaseWeights, received_adapter
from transport.errors import WeightsHalfWritten, WeightTransferError
from transport.weights.broadcast import BroadcastMember, Seat, at_seat
from transport.weights.channel import Published, WeightManifest, WeightReceiver
from transport.weights.object_store import ObjectStoreReceiver

if TYPE_CHECKING:
    from vllm import LLM

BACKEND = "bicot"
WORKER = f"{__name__}.ChannelWorker"
CHUNK_BYTES = 1 << 30
"""Of tensors that lie in shared memory at a time, and one tensor more."""


@cache
def register() -> str:
    """Register the engine with vLLM, in this process; returns the backend's name. Repeated calls do nothing."""
    WeightTransferEngineFactory.register_engine(BACKEND, ChannelEngine)
    # At every sync vLLM warns that rotary tables "failed to load"; no checkpoint has them. We check names below.
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
    """Load the published weights into `llm` and clear its prefix cache; returns the version that `llm` now has.

    A published LoRA adapter is merged into `base`, the weights of the policy's checkpoint. vLLM takes all weights or
    none, so unchanged weights come from `base` too. They are read and merged one by one as vLLM loads them. Version 0
    of an adapter is 0, and gives the checkpoint's weights.

    Everything is received and checked before the first weight changes, so a failed transfer leaves the engine
    unchanged. No request may be running. Blocks for at most `deadline_s` seconds of transfer, plus the copy.

    Raises:
        WeightTransferError: the transfer failed, the weights are not all that the model needs, or do not fit it, or
            requests are running.
        WeightsHalfWritten: it broke off after some weights were replaced.
    """
    _require_idle(llm, published.version)
    arrived = list((receiver or ObjectStoreReceiver()).receive(published, deadline_s))
    shapes, tensors = _whole_weights(published.version, arrived, base)
    _prepare(llm, {"version": published.version, "shapes": shapes})

    def load() -> None:
        if llm.llm_engine.vllm_config.parallel_config.world_size == 1:
            llm.update_weights({"update_info": {"tensors": tensors}})
        else:
            _share(llm, tensors)

    return _update(llm, published.version, load)


def broadcast_to_vllm(
    llm: LLM, manifest: WeightManifest, seat: Seat, *, deadline_s: float, base: BaseWeights | None = None
) -> int:
    """Take part in the broadcast of `manifest`, and clear the prefix cache; returns the version that `llm` now has.

    The engine's workers have `seat` and the seats after it. Each loads bucket by bucket; an adapter is first received
    completely and then merged into `base`, as in `apply_to_vllm`. No request may be running. Blocks for at most
    `deadline_s` seconds until all members are ready, and as long again for the transfer.

    Raises:
        WeightTransferError: the weights are not all that the model needs, or do not fit it; requests are running; or
            the members did not meet. The engine is unchanged.
        WeightsHalfWritten: it broke off after some weights were replaced.
    """
    _require_idle(llm, manifest.version)
    shapes, _ = _whole_weights(manifest.version, manifest.stand_ins(), base)
    _prepare(llm, {"version": manifest.version, "shapes": shapes, "seat": seat, "deadline_s": deadline_s})
    info = {"manifest": manifest, "base": base, "deadline_s": deadline_s}
    return _update(llm, manifest.version, lambda: llm.update_weights({"update_info": info}))


def _require_idle(llm: LLM, version: int) -> None:
    if llm.llm_engine.has_unfinished_requests():
        raise WeightTransferError(f"weights {version}: vLLM has requests running; sync between batches")


def _prepare(llm: LLM, init_info: dict[str, Any]) -> None:
    """`ChannelEngine.init_transfer_engine` in every worker."""
    refusals = [refusal for refusal in llm.collective_rpc("prepare_weights", args=(init_info,)) if refusal]
    if refusals:
        raise WeightTransferError(refusals[0])


def _update(llm: LLM, version: int, load: Callable[[], None]) -> int:
    try:
        llm.start_weight_update()
        load()
        llm.finish_weight_update(weight_version=str(version))
    except Exception as error:
        raise WeightsHalfWritten(
            f"weights {version}: vLLM could not load them and is half written; start its actor anew "
            f"({type(error).__name__}: {error})"
        ) from error
    if not llm.reset_prefix_cache():
        raise WeightTransferError(f"weights {version}: vLLM did not reset its prefix cache")
    return version


def _whole_weights(
    version: int, arrived: list[tuple[str, torch.Tensor]], base: BaseWeights | None
) -> tuple[dict[str, tuple[int, ...]], Iterable[tuple[str, torch.Tensor]]]:
    """Shapes by vLLM's names, and the weights themselves; an adapter is merged during the iteration."""
    try:
        adapter = received_adapter(arrived)
    except AdapterError as error:
        raise WeightTransferError(f"weights {version}: {error}") from error
    if adapter is None:
        tensors = [(target, tensor) for name, tensor in arrived if (target := vllm_name(name)) is not None]
        return {name: tuple(tensor.shape) for name, tensor in tensors}, tensors
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
    return {names[name]: shapes[name] for name in names}, ((names[name], tensor) for name, tensor in merged)


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
    """The Llama checkpoint name of a Janus `state_dict` name; None outside the language model."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name if name == "lm_head.weight" else None


@dataclass
class ChannelInitInfo(WeightTransferInitInfo):
    """The contents of the next update; checked against the model before any weight changes.

    With a `seat` the update is a broadcast, and the members meet now.
    """

    version: int
    shapes: dict[str, tuple[int, ...]]
    seat: Seat | None = None
    deadline_s: float = 0.0


@dataclass
class ChannelUpdateInfo(WeightTransferUpdateInfo):
    """Checkpoint-named tensors of this process, the safetensors file that holds them, or a broadcast's manifest."""

    tensors: Iterable[tuple[str, torch.Tensor]] = field(default=(), repr=False)
    file: str | None = None
    manifest: WeightManifest | None = field(default=None, repr=False)
    base: BaseWeights | None = None
    deadline_s: float = 0.0


class ChannelEngine(WeightTransferEngine[ChannelInitInfo, ChannelUpdateInfo]):
    """Loads the tensors that it is given, or receives them in a broadcast."""

    init_info_cls = ChannelInitInfo
    update_info_cls = ChannelUpdateInfo
    _member: BroadcastMember | None = None

    def init_transfer_engine(self, init_info: ChannelInitInfo) -> None:
        """Refuse an update that would leave a layer incomplete: vLLM fills missing tensors with garbage.

        Then meet the members, if the update is a broadcast.
        """
        needed, version = self._checkpoint_shapes, init_info.version
        missing = sorted(needed.keys() - init_info.shapes)
        if missing:
            raise WeightTransferError(
                f"weights {version}: {len(missing)} tensors that vLLM's model needs were not published, "
                f"first {missing[0]!r}"
            )
        for name, shape in init_info.shapes.items():
            if needed.get(name) != shape:
                expected = f"is {list(needed[name])}" if name in needed else "model has no such tensor"
                raise WeightTransferError(f"weights {version}: {name!r} is {list(shape)}, and vLLM's {expected}")
        if init_info.seat is not None:
            self._member = at_seat(self._member, init_info.seat.worker(self.parallel_config.rank))
            self._member.meet(init_info.version, init_info.deadline_s)

    def start_weight_update(self) -> None:
        """Set the layers up for checkpoint-format weights."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ChannelUpdateInfo) -> None:
        """Load the weights; vLLM copies each layer when the layer is complete."""
        if update_info.manifest is not None:
            self.model.load_weights(self._arriving(update_info.manifest, update_info))
        else:
            self.model.load_weights(load_file(update_info.file).items() if update_info.file else update_info.tensors)

    def _arriving(
        self, manifest: WeightManifest, update_info: ChannelUpdateInfo
    ) -> Iterable[tuple[str, torch.Tensor]]:
        """A broadcast's tensors under vLLM's names: as they arrive, or after an adapter has arrived completely."""
        assert self._member is not None
        # vLLM keeps tensors until their layer is complete, so each bucket has its own memory.
        tensors = self._member.receive(manifest, update_info.deadline_s, keep=True)
        if manifest.is_adapter:
            return _whole_weights(manifest.version, list(tensors), update_info.base)[1]
        return ((target, tensor) for name, tensor in tensors if (target := vllm_name(name)) is not None)

    def finish_weight_update(self) -> None:
        """Finish the layers without checkpoint weights."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leave the group of broadcasts."""
        if self._member is not None:
            self._member.leave()
            self._member = None

    @cached_property
    def _checkpoint_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the model's parameters in a checkpoint; vLLM's own tensors are fused, padded and sharded."""
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(self.model_config.hf_config)
        return {name: tuple(parameter.shape) for name, parameter in whole.named_parameters()}


class ChannelWorker:
    """An extension of each vLLM worker: its process imports this module, which registers the engine there."""

    def prepare_weights(self, init_info: dict[str, Any]) -> str | None:
        """Check the announced weights; returns the problem, or None.

        This method returns the problem and does not raise: after an exception vLLM reads only the first worker's
        answer, and takes the other answers for those to its next call.
        """
        try:
            self.init_weight_transfer_engine(init_info)  # type: ignore[attr-defined]
        except WeightTransferError as error:
            return str(error)
        return None


register()
