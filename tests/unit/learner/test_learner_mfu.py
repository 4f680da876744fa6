"""Model FLOPs utilisation, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learner.batching import BatchPlan, Kind, MicroBatch
from learner.mfu import MfuMeter, peak_flops

LAYERS = nn.ModuleList([nn.Linear(10, 10, bias=False), nn.Linear(10, 5, bias=False)])  # 150 parameters


def plan(*ranks: tuple[int, ...]) -> BatchPlan:
    """A micro-batch a rank and number of positions; each rank ends in a filler."""
    kind = Kind("image", 1.0, 2.0)
    made = [
        tuple(MicroBatch(kind, (), positions, filler) for positions, filler in
              [*((positions, False) for positions in rank), (1000, True)])
        for rank in ranks
    ]  # fmt: skip
    return BatchPlan(tuple(made), tokens=1)


def test_by_hand() -> None:
    LAYERS.requires_grad_(True)
    with_reference = MfuMeter(LAYERS, reference=True, peak_tflops=1e-9)  # 1,000 FLOP/s a rank
    # 8 FLOPs a parameter and position: 2 forward, 4 backward, 2 of the reference.
    assert with_reference.measure(plan((3, 4), (5,)), seconds=10.0) == {"mfu": pytest.approx(0.72)}
    assert MfuMeter(LAYERS, reference=False, peak_tflops=None).flops_per_position == 6 * 150


def test_frozen_parameters_cost_no_gradient_of_their_own() -> None:
    LAYERS.requires_grad_(False)
    next(LAYERS.parameters()).requires_grad_(True)
    assert MfuMeter(LAYERS, reference=False, peak_tflops=None).flops_per_position == 4 * 150 + 2 * 100


def test_an_unknown_peak_gives_none() -> None:
    if not torch.cuda.is_available():
        assert MfuMeter(LAYERS, reference=True, peak_tflops=None).measure(plan((3,)), 1.0) == {}
    assert MfuMeter(LAYERS, reference=True, peak_tflops=1.0).measure(BatchPlan(((),), tokens=0), 1.0) == {}
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.bfloat16) == pytest.approx(989e12)
    assert peak_flops("NVIDIA H100 PCIe", torch.bfloat16) == pytest.approx(756e12)
    assert peak_flops("NVIDIA H200", torch.float32) is None and peak_flops("Some GPU", torch.bfloat16) is None


def test_the_data_sheets_figures_by_the_names_that_cuda_gives() -> None:
    teraflops = {
        "NVIDIA B200": 2250, "NVIDIA H200": 989, "NVIDIA H200 NVL": 989, "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 NVL": 835, "NVIDIA H800": 989, "NVIDIA H20": 148, "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA A800-SXM4-80GB": 312, "NVIDIA L40S": 362, "NVIDIA L20": 119, "NVIDIA A40": 150,
        "NVIDIA GeForce RTX 4090": 165,
    }  # fmt: skip
    assert {name: peak_flops(name, torch.float16) for name in teraflops} == {
        name: count * 10**12 for name, count in teraflops.items()
    }
