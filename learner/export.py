"""The trained policy as a checkpoint in the Hugging Face layout, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from learner.zero import gathered, whole_shape
from policy.export import save_hf_tensors
from policy.janus import Policy
from policy.lora import merge
from policy.weight_files import TensorInfo

if TYPE_CHECKING:
    from learner.adapter import TrainedAdapter

_DONE = -1


@dataclass(frozen=True)
class _Source:
    """The parts of one exported tensor; `pair` has its adapter's A and B, if there is one."""

    weight: Tensor
    pair: tuple[Parameter, Parameter] | None = None
    scale: float = 0.0

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(tuple(whole_shape(self.weight)), self.weight.dtype)

    def read(self, stage: int) -> Tensor:
        """The whole tensor on the CPU; a collective under ZeRO 3."""
        with torch.no_grad(), gathered([self.weight, *(self.pair or ())], stage):
            return (merge(self.weight, *self.pair, self.scale) if self.pair else self.weight.detach().clone()).cpu()


def export_policy(policy: Policy, adapter: TrainedAdapter | None, stage: int, folder: Path) -> None:
    """Write the policy to `folder`, with an adapter merged and also beside it; a collective in which rank 0 writes.

    One tensor at a time is whole in memory. Under ZeRO 3 the other ranks help rank 0 to gather each tensor.
    """
    sources = _sources(policy, adapter)
    names = list(sources)

    def read(name: str) -> Tensor:
        _next(names.index(name))
        return sources[name].read(stage)

    if dist.get_rank() == 0:
        infos = {name: source.info for name, source in sources.items()}
        try:
            save_hf_tensors(policy.model, policy.tokenizer, folder, infos, read)
        finally:
            _next(_DONE)
    else:
        while (index := _next(_DONE)) != _DONE:
            sources[names[index]].read(stage)
    if adapter is not None:
        _export_adapter(adapter, stage, folder)
    dist.barrier()


def _export_adapter(adapter: TrainedAdapter, stage: int, folder: Path) -> None:
    whole = {}
    for weight, pair in adapter.pairs().items():
        with gathered(list(pair), stage):
            whole[weight] = tuple(matrix.detach().cpu().clone() for matrix in pair)
    if dist.get_rank() == 0:
        adapter.save(whole, folder)


def _sources(policy: Policy, adapter: TrainedAdapter | None) -> dict[str, _Source]:
    """The tensors of the plain model's state dict, by their names there."""
    state: dict[str, Tensor] = policy.model.state_dict(keep_vars=True)
    if adapter is None:
        return {name: _Source(tensor) for name, tensor in state.items()}
    pairs = adapter.pairs()
    plain = {name: adapter.plain_name(name) for name in state}
    return {name: _Source(state[stored], pairs.get(name), adapter.scale) for stored, name in plain.items() if name}


def _next(index: int) -> int:
    """Rank 0 chooses the tensor that is read next; all ranks return it."""
    message = torch.tensor(index)
    dist.broadcast(message, 0)
    return int(message)
