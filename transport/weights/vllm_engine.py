"""Published weights into a vLLM engine, through vLLM's own weight-transfer interface.

    backend = register()                                   # before the LLM is made
    llm = LLM(..., weight_transfer_config=WeightTransferConfig(backend=backend))
    version = apply_to_vllm(llm, published, deadline_s=60.0)     # -> published.version

The first weights, every sync and a restart are the same path: make the LLM with `load_format="dummy"` and apply.
The engine has to live in the caller's process (VLLM_ENABLE_V1_MULTIPROCESSING=0): tensors go over by reference.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from policy.lora import AdapterError, BaseWeights, received_adapter
from transport.errors import WeightTransferError
from transport.weights.channel import Published, WeightReceiver
from transport.weights.object_store import ObjectStoreReceiver

if TYPE_CHECKING:
    from vllm import LLM

BACKEND = "bicot"


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
    """
    if llm.llm_engine.has_unfinished_requests():
        raise WeightTransferError(f"weights {published.version}: vLLM has requests running; sync between batches")
    arrived = list((receiver or ObjectStoreReceiver()).receive(published, deadline_s))
    names, whole = _whole_weights(published.version, arrived, base)
    wanted = [target for name in names if (target := vllm_name(name)) is not None]
    tensors = ((target, tensor) for name, tensor in whole if (target := vllm_name(name)) is not None)
    llm.init_weight_transfer_engine({"init_info": {"version": published.version, "names": wanted}})
    try:
        llm.start_weight_update()
        llm.update_weights({"update_info": {"tensors": tensors}})
        llm.finish_weight_update(weight_version=str(published.version))
    except Exception as error:
        raise WeightTransferError(
            f"weights {published.version}: vLLM could not load them and is half written; start its actor anew "
            f"({type(error).__name__}: {error})"
        ) from error
    if not llm.reset_prefix_cache():
        raise WeightTransferError(f"weights {published.version}: vLLM did not reset its prefix cache")
    return published.version


def _whole_weights(
    version: int, arrived: list[tuple[str, torch.Tensor]], base: BaseWeights | None
) -> tuple[list[str], Iterable[tuple[str, torch.Tensor]]]:
    """The names of all weights that come of what arrived, and the weights, an adapter's merged as they are iterated."""
    try:
        adapter = received_adapter(arrived)
    except AdapterError as error:
        raise WeightTransferError(f"weights {version}: {error}") from error
    if adapter is None:
        return [name for name, _ in arrived], arrived
    if base is None:
        raise WeightTransferError(f"weights {version}: an adapter came, and no checkpoint is known to merge it into")
    names = [name for name in base.names() if vllm_name(name)]
    if unknown := sorted(adapter.matrices.keys() - set(names)):
        raise WeightTransferError(f"weights {version}: the language model has no weight {unknown[0]!r} to adapt")
    return names, adapter.merged(base.tensor, names)


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
    """Checkpoint-named tensors, each loaded as it is iterated."""

    tensors: Iterable[tuple[str, torch.Tensor]] = field(repr=False)


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
        self.model.load_weights(update_info.tensors)

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
