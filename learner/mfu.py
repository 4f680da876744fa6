"""Model FLOPs utilisation: the necessary arithmetic of a step, divided by its devices' peak in the same time.

A position of a pass through the decoder layers costs 2 FLOPs per parameter forward, 2 backward, and 2 more for each
trained parameter; the reference policy costs another forward pass. Positions that rows share count once. Recomputed
layers, attention scores, embeddings and heads do not count, so the figure is a little low.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from learner.batching import BatchPlan

PEAK_TFLOPS = {
    "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H800": 989, "H20": 148, "B200": 2250, "A100": 312,
    "A800": 312, "L40S": 362, "L20": 119, "A40": 150, "RTX 4090": 165,
}  # fmt: skip
"""Dense bfloat16 peaks from NVIDIA's data sheets; the first name that the device's name contains counts."""


def peak_flops(device: str, dtype: torch.dtype) -> float | None:
    """FLOP/s of one device, by its CUDA name; None if unknown."""
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in device), None)


class MfuMeter:
    """Measures steps of a model; its decoder `layers` must already be marked with the parameters that train."""

    def __init__(self, layers: nn.Module, reference: bool, peak_tflops: float | None) -> None:
        """`reference`: a reference policy is scored too; `peak_tflops` of one device, for unknown devices."""
        from learner.zero import whole_shape  # imports DeepSpeed, which `peak_flops` needs none of

        parameters = list(layers.parameters())
        sizes = [math.prod(whole_shape(parameter)) for parameter in parameters]
        trained = sum(size for size, parameter in zip(sizes, parameters, strict=True) if parameter.requires_grad)
        self.flops_per_position = (6 if reference else 4) * sum(sizes) + 2 * trained
        self.peak = 1e12 * peak_tflops if peak_tflops else None
        if self.peak is None and torch.cuda.is_available():
            self.peak = peak_flops(torch.cuda.get_device_name(), parameters[0].dtype)

    def measure(self, plan: BatchPlan, seconds: float) -> dict[str, float]:
        """`mfu` of a step that took `seconds`; empty if the peak is unknown."""
        if self.peak is None or not plan.tokens:
            return {}
        positions = sum(batch.positions for rank in plan.micro_batches for batch in rank if not batch.filler)
        return {"mfu": self.flops_per_position * positions / (len(plan.micro_batches) * self.peak * seconds)}
