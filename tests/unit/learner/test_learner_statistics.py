"""What a step says of its tokens, by hand: means, what the clip cut off, and the estimate of the divergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learner.config import ObjectiveConfig
from learner.objective import SegmentStats, segment_loss


def test_means_are_sums_by_tokens() -> None:
    stats = SegmentStats(*torch.tensor([4, -9, 2, 6, 1, 5, 8, 3, 0.5], dtype=torch.float64))
    assert stats.per_token() == {
        "tokens": 4, "kl": 0.5, "behaviour_kl": 1.5, "clip_fraction": 0.25, "ratio_mean": 1.25, "entropy": 2,
        "ratio_max": 3, "logprob_gap_max": 0.5,
    }  # fmt: skip
    both = stats + SegmentStats(
        *(torch.tensor(value, dtype=torch.float64) for value in [6, 1, 1, 1, 1, 1, 1, 7, 0.1])
    )
    assert both.per_token() == pytest.approx({
        "tokens": 10, "kl": 0.3, "behaviour_kl": 0.7, "clip_fraction": 0.2, "ratio_mean": 0.6, "entropy": 0.9,
        "ratio_max": 7, "logprob_gap_max": 0.5,
    })  # fmt: skip


def statistics(gaps: list[float], advantages: list[float], config: ObjectiveConfig) -> SegmentStats:
    behaviour = torch.linspace(-3, -1, len(gaps), dtype=torch.float64)
    new = behaviour + torch.tensor(gaps, dtype=torch.float64)
    spread = torch.arange(len(gaps), dtype=torch.float64)
    return segment_loss(new, behaviour, None, spread, torch.tensor(advantages, dtype=torch.float64), 1.0, config)[1]


def test_sums_over_a_segment() -> None:
    gaps = [0.0, 0.5, -1.0]
    stats = statistics(gaps, [1.0, 1.0, 1.0], ObjectiveConfig())
    assert stats.ratio.item() == pytest.approx(1 + math.exp(0.5) + math.exp(-1))
    assert stats.ratio_max.item() == pytest.approx(math.exp(0.5))
    # E_behaviour[r - 1 - log r] is the KL divergence of behaviour and new.
    assert stats.behaviour_kl.item() == pytest.approx(sum(math.exp(gap) - 1 - gap for gap in gaps))
    assert (stats.gap_max.item(), stats.entropy.item(), stats.reference_kl.item()) == (pytest.approx(1.0), 3, 0)
    sums = stats.per_token()
    assert sums["tokens"] == 3 and sums["entropy"] == 1


@pytest.mark.parametrize(
    ("ratio", "advantage", "cut"),
    [
        (0.7, -1.0, True), (0.7, 1.0, False), (0.7, 0.0, False), (0.85, -1.0, False),
        (1.4, 1.0, True), (1.4, -1.0, False), (1.4, 0.0, False), (1.25, 1.0, False), (1.0, 1.0, False),
    ],
)  # fmt: skip
def test_the_clip_cuts_off_a_gradient(ratio: float, advantage: float, cut: bool) -> None:
    config = ObjectiveConfig(clip_low=0.2, clip_high=0.3, beta=0)
    new = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    given: dict[str, Tensor] = {
        "behaviour": torch.zeros(1, dtype=torch.float64),
        "entropy": torch.zeros(1),
        "advantages": torch.tensor([advantage], dtype=torch.float64),
    }
    loss, stats = segment_loss(new, reference=None, weight=1.0, config=config, **given)
    loss.backward()
    assert stats.clipped.item() == cut
    assert new.grad is not None and new.grad.item() == pytest.approx(0.0 if cut else -ratio * advantage)
    off = config.model_copy(update={"clip": False})
    assert segment_loss(new, reference=None, weight=1.0, config=off, **given)[1].clipped.item() == 0
