"""What happens after a run has ended does not change how it ended."""

from __future__ import annotations

import io
from pathlib import Path

from report_runs import make_run
from rich.console import Console

from cluster.run import _tell_success
from recipe.config import load_config


def test_a_report_that_cannot_be_written_is_told_and_the_run_stays_a_success(tmp_path: Path) -> None:
    folder, out = make_run(tmp_path / "run"), io.StringIO()
    folder.environment.write_text("{")
    summary = {
        "steps": 20, "step_seconds": 40.0, "pictures_per_s": 32.0, "seconds": 70.0, "resumed_at": 0,
        "held_out": {"test_before": {"all": 0.4}, "test_after": {"all": 0.8}},
    }  # fmt: skip
    _tell_success(Console(file=out, markup=False), folder, load_config(folder.config), summary)
    told = " ".join(out.getvalue().split())
    assert "20 steps in 40 s" in told and "+0.400" in told
    assert "The report was not written: " in told and "environment.json" in told and "bicot report" in told
