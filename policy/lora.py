"""LoRA adapters: their published form, and the merge by actors: W = W0 + scale B A (arXiv 2106.09685).

An adapter is published as `lora.scale`, a single float64, and a pair `lora.A:NAME` [rank, in], `lora.B:NAME`
[out, rank] for each weight NAME that it changes. So a receiver recognises an adapter by the names alone:

    adapter = received_adapter(tensors)                  # None: they are whole weights
    for name, tensor in adapter.merged(base.tensor): ...

Every version is merged into the checkpoint's weights, in float32, and rounded once. So rounding does not accumulate
over versions, and an adapter that is 0 gives the checkpoint's weights bit for bit.

Gotcha: bfloat16 rounds a merged weight to 8 bits. So an adapter that is much smaller than its weights has less effect
in the actors than in the learner, which adds B A x to W0 x. The objective's ratio shows that difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from policy.checkpoint import Checkpoint, open_checkpoint
from policy.config import PolicyConfig

SCALE = "lora.scale"
_PREFIX = "lora."


class AdapterError(ValueError):
    """Tensors that are not a complete adapter, or do not fit the weights that they change; names the first."""


def adapter_name(matrix: Literal["A", "B"], weight: str) -> str:
    """The published name of an adapter matrix of `weight`, a state-dict name."""
    return f"{_PREFIX}{matrix}:{weight}"


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`weight` [out, in] + scale `b` [out, rank] `a` [rank, in], computed in float32 on the weight's device.

    The result is a new tensor in the weight's number format.
    """
    a, b = (matrix.to(weight.device, torch.float32) for matrix in (a, b))
    return weight.float().addmm(b, a, alpha=scale).to(weight.dtype)


@dataclass(frozen=True)
class Adapter:
    """A received adapter: A [rank, in] and B [out, rank] by the name of the weight that they change."""

    scale: float
    matrices: Mapping[str, tuple[Tensor, Tensor]]

    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of every weight that it changes."""
        return {name: (b.shape[0], a.shape[1]) for name, (a, b) in self.matrices.items()}

    def merged(
        self, base: Callable[[str], Tensor], names: Iterable[str] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The merged weights `names` (by default all that the adapter changes).

        `base` gives a weight of the checkpoint, in the number format and on the device of the policy. It is called
        for one weight at a time; weights that the adapter does not change are returned as `base` gives them.
        """
        for name in self.matrices if names is None else names:
            weight = base(name)
            yield name, merge(weight, *self.matrices[name], self.scale) if name in self.matrices else weight


def received_adapter(tensors: Sequence[tuple[str, Tensor]]) -> Adapter | None:
    """The adapter in these published tensors; None if they are whole weights.

    Raises:
        AdapterError: a matrix or the scale is missing, or there are other tensors.
    """
    arrived = dict(tensors)
    if not any(name.startswith(_PREFIX) for name in arrived):
        return None
    if SCALE not in arrived:
        raise AdapterError(f"an adapter came without {SCALE!r}")
    scale = float(arrived.pop(SCALE))
    first = adapter_name("A", "")
    weights = [name.removeprefix(first) for name in arrived if name.startswith(first)]
    expected = {adapter_name(matrix, weight) for weight in weights for matrix in ("A", "B")}
    odd = sorted(expected.symmetric_difference(arrived))
    if odd or not weights:
        raise AdapterError(f"an adapter came with {len(odd)} tensors too many or too few, first {odd[:1]}")
    matrices = {w: (arrived[adapter_name("A", w)], arrived[adapter_name("B", w)]) for w in weights}
    for weight, (a, b) in matrices.items():
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise AdapterError(f"the adapter of {weight!r} is {list(b.shape)} times {list(a.shape)}")
    return Adapter(scale, matrices)


class BaseWeights:
    """The weights of the policy's checkpoint, in the policy's number format, on `device`.

    Every merge reads them from the files. The system caches the files' pages and the processes of a machine share
    them; a copy in each process would cost as much memory as the model.
    """

    def __init__(self, config: PolicyConfig, device: str | torch.device = "cpu") -> None:
        """Opens nothing yet."""
        self._config = config
        self._device = device

    def __getstate__(self) -> dict[str, Any]:
        """For pickling: the other process opens the files itself."""
        return {"_config": self._config, "_device": self._device}

    def tensor(self, name: str) -> Tensor:
        """One weight by its state-dict name; not to be written to.

        Raises:
            CheckpointError: the checkpoint cannot be read any more.
        """
        return self._checkpoint.tensor(name).to(self._device, getattr(torch, self._config.dtype))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all weights, in the files' order, which is the fastest order to read."""
        return self._checkpoint.shapes()

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return open_checkpoint(self._config.checkpoint)
