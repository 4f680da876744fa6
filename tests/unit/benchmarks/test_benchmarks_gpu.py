"""The benchmark of one GPU: its parts run on a CPU too, and one that breaks costs no other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.__main__ import GPU_PARTS, main
from benchmarks.report import Report

TINY = ["gpu", "--device", "cpu", "--scale", "tiny", "--repeats", "1"]


def test_every_part_can_be_named() -> None:
    assert list(GPU_PARTS) == list(gpu.PARTS)


@pytest.mark.slow
def test_the_parts_that_a_cpu_has(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    assert main([*TINY, "--json", str(path)]) == 0
    tables = {
        table["title"].split(",")[0].split(" at ")[0]: table["rows"]
        for table in json.loads(path.read_text())["tables"]
    }
    assert {"Ceilings", "Attention of one position", "Detector", "Sampler", "Scorer"} < tables.keys()
    for title, rows in tables.items():
        assert not any("failed" in row for row in rows), (title, rows)
        assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float)), title
    eager, again, _ = tables["Sampler"]
    assert eager["as eager"] == again["as eager"] == 1.0
    assert all(row["error"] < 0.01 and row["same bits"] == 1.0 for row in tables["Attention of one position"])
    guided, conditional, smaller, alone = tables["Learner's log-probs less the sampler's"]
    assert smaller["largest"] < conditional["largest"] < guided["largest"] < 0.1 and alone["largest"] < 0.1
    assert [row["case"] for row in tables["Scorer"]] == ["layers", "selective", "nothing"]


def test_a_part_that_breaks_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(report: Report) -> None:
        raise RuntimeError("no kernel for this card\nand more")

    path = tmp_path / "found.json"
    monkeypatch.setitem(gpu.PARTS, "detector", broken)
    with pytest.raises(SystemExit, match="gpu: failed: detector"):
        main([*TINY, "--part", "detector", "attention", "--json", str(path)])
    first, second = json.loads(path.read_text())["tables"]
    assert first["rows"] == [{"case": "detector", "error": "RuntimeError: no kernel for this card"}]
    assert second["title"].startswith("Attention")


def test_what_a_cpu_lacks_is_refused() -> None:
    with pytest.raises(SystemExit, match="gpu: pcie: nothing to measure on a CPU"):
        main([*TINY, "--part", "pcie"])
    with pytest.raises(SystemExit):
        main(["rewards", "--part", "pcie"])
