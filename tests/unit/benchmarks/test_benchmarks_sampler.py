"""The sampler's benchmark: every case draws the same pictures where the draw is greedy, and the figures come out."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.sampler import image_prompts, sampling_cases
from benchmarks.scales import make_model


@pytest.mark.slow
def test_all_cases_draw_the_same_pictures() -> None:
    policy = make_model("tiny", "cpu", torch.float32)
    cases = sampling_cases(policy, image_prompts(policy, 6, 20), greedy=True)
    drawn = {name: case() for name, case in cases.items()}
    for name, tokens in drawn.items():
        assert torch.equal(tokens, drawn["plain loop"]), name


@pytest.mark.slow
def test_a_run_writes_every_figure(tmp_path: Path) -> None:
    assert main(["sampler", "--repeats", "1", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [len(table["rows"]) for table in found["tables"]] == [5, 5]
    rows = [row for table in found["tables"] for row in table["rows"]]
    figures = [value for row in rows for value in row.values() if not isinstance(value, str)]
    assert all(math.isfinite(value) and value > 0 for value in figures)
    assert {"x plain loop", "x transformers generate", "share of the limit"} <= rows[0].keys()
    assert found["machine"]["cores"] and found["versions"]["torch"]


def test_a_wrong_file_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sampler", "--json", str(tmp_path / "nowhere" / "found.json")])
    assert "there is no folder" in capsys.readouterr().err
