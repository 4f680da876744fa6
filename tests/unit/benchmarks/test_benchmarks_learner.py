"""The learner's benchmark: every case is the same step, and its table has figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import learner
from benchmarks.__main__ import main
from benchmarks.learner import Bench


def test_every_case_has_the_same_loss_and_gradient() -> None:
    bench = Bench.make("tiny", "cpu", torch.float32)
    found = {}
    for name, case in bench.cases().items():
        bench.clear()
        loss = case()
        named = bench.policy.model.named_parameters()
        found[name] = loss, {key: p.grad.clone() for key, p in named if p.grad is not None}
    loss, gradients = found.pop("plain")
    assert len(gradients) == sum(p.requires_grad for p in bench.policy.model.parameters())
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, (other, theirs) in found.items():
        assert other == pytest.approx(loss, abs=1e-6), name
        assert theirs.keys() == gradients.keys(), name
        for key, gradient in gradients.items():
            assert (theirs[key] - gradient).abs().max() <= 1e-5 * largest, (name, key)


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(learner.MEMBERS, "tiny", 2)
    path = tmp_path / "learner.json"
    assert main(["learner", "--json", str(path), "--repeats", "1"]) == 0
    assert "Training step at tiny, float32" in capsys.readouterr().out
    float32, bfloat16 = json.loads(path.read_text())["tables"]
    for table in (float32, bfloat16):
        assert [row["case"] for row in table["rows"]][:2] == ["plain", "plain, a row a pass"]
        for row in table["rows"]:
            figures = [value for key, value in row.items() if key not in ("case", "MFU")]
            assert all(math.isfinite(figure) and figure >= 0 for figure in figures), row
            assert row["step s"] > 0 and row["tokens/s"] > 0 and row["of limit"] > 0, row
