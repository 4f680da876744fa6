"""Computes linear layers with the same input as one product; the layers keep sharing the weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedLinear:
    """Returns the layers' outputs, concatenated.

    The layers' parameters become views of one matrix: an in-place update of one updates the other, and memory holds
    every weight once.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._layers = layers
        self._fuse()

    def __call__(self, states: Tensor) -> Tensor:
        """[..., sum of the outputs] of `states` [..., inputs]."""
        return F.linear(states, self._weight, self._bias)

    def refresh(self) -> bool:
        """Fuse again if a parameter has moved to other memory; returns whether one had."""
        moved = [layer.weight.data_ptr() for layer in self._layers] != self._pointers
        if moved:
            self._fuse()
        return moved

    @torch.inference_mode(False)  # a parameter made from inference tensors could not be trained any more
    @torch.no_grad()
    def _fuse(self) -> None:
        self._weight = _joined([layer.weight for layer in self._layers])
        biases = [layer.bias for layer in self._layers if layer.bias is not None]
        self._bias = _joined(biases) if biases else None
        self._pointers = [layer.weight.data_ptr() for layer in self._layers]


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    """Concatenate the parameters along their first dimension; they become views of the result."""
    sizes = [len(parameter) for parameter in parameters]
    first = parameters[0].data
    if all(_follows(after, before) for before, after in pairwise(parameters)):
        return first.as_strided((sum(sizes), *first.shape[1:]), first.stride())
    joined = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, joined.split(sizes), strict=True):
        parameter.data = part
    return joined


def _follows(after: Tensor, before: Tensor) -> bool:
    """Whether one directly follows the other in the same memory."""
    same = after.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
    return same and after.storage_offset() == before.storage_offset() + before.numel()
