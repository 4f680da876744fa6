"""Linear layers that read the same input as one product, on weights that the layers go on sharing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedLinear:
    """Gives the layers' outputs end to end.

    Their parameters become views of one matrix: an update in place of either is one of both, and no weight is held
    twice.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._layers = layers
        self._fuse()

    def __call__(self, states: Tensor) -> Tensor:
        """[..., sum of the outputs] of `states` [..., inputs]."""
        return F.linear(states, self._weight, self._bias)

    def refresh(self) -> bool:
        """Fuse again if a parameter has been given other memory since; whether one was."""
        moved = [layer.weight.data_ptr() for layer in self._layers] != self._pointers
        if moved:
            self._fuse()
        return moved

    @torch.inference_mode(False)  # a parameter made of inference tensors could not be trained any more
    @torch.no_grad()
    def _fuse(self) -> None:
        self._weight = _joined([layer.weight for layer in self._layers])
        biases = [layer.bias for layer in self._layers if layer.bias is not None]
        self._bias = _joined(biases) if biases else None
        self._pointers = [layer.weight.data_ptr() for layer in self._layers]


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    """The parameters along their first dimension in one tensor, which holds them from now on."""
    sizes = [len(parameter) for parameter in parameters]
    first = parameters[0].data
    if all(_follows(after, before) for before, after in pairwise(parameters)):
        return first.as_strided((sum(sizes), *first.shape[1:]), first.stride())
    joined = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, joined.split(sizes), strict=True):
        parameter.data = part
    return joined


def _follows(after: Tensor, before: Tensor) -> bool:
    """Whether one lies right behind the other in one piece of memory."""
    same = after.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
    return same and after.storage_offset() == before.storage_offset() + before.numel()
