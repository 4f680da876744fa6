"""A run's files that are not as a run writes them: the report is one sentence then, or does without."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from report_runs import make_run

from cluster.cli import main
from recipe.errors import RunError
from recipe.run_folder import append_json
from report.page import write_report


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("environment.json", b'{"started": "20'),
        ("environment.json", b'{"packages": []}'),
        ("environment.json", b'{"nodes": [{}]}'),
        ("summary.json", b"\xff"),
        ("summary.json", b'{"status": "finished"}'),
        ("training.json", b"[]"),
        ("training.json", b'{"rewards": null}'),
        ("samples/dev-000020.json", b'{"step": 20}'),
        ("samples/dev-000020.json", b""),
        ("metrics.jsonl", b"5\n"),
        ("metrics.jsonl", b'{"step": null}\n'),
        ("metrics.jsonl", b'{"step": 1, "kl": "x"}\n'),
        ("held_out.jsonl", b'{"step": 1, "scores": {"all": 0.5}}\n'),
        ("held_out.jsonl", b'{"step": 1, "split": "dev", "scores": {"single": 0.5}}\n'),
    ],
)
def test_a_damaged_file_is_named(name: str, text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=20)
    (run.path / name).write_bytes(text)
    assert main(["report", str(run.path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("bicot: ") and told.count("\n") == 1 and name in told


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"steps": None}, "steps"),
        ({"rewards": {"services": {"a": 1}}}, "rewards: services"),
        ({"rollout": 7}, "rollout"),
    ],
)
def test_a_config_of_another_kind_is_told(change: dict[str, object], key: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    run.config.write_text(yaml.safe_dump({**yaml.safe_load(run.config.read_text()), **change}))
    with pytest.raises(RunError, match=rf"config\.yaml is not as a run writes it: {key}: "):
        write_report(run)


def test_what_a_row_does_not_tell_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=0)
    for row in ({"seconds/step": 0.0, "pictures_per_s": 0.0}, {"seconds/step": None, "kl": None}, {}):
        append_json(run.metrics, {"step": 1, **row})
    (run.samples / "dev-000000-0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\1" * 9)
    html = write_report(run).read_text()
    assert "pictures/s in steps" not in html and "no picture" in html


def test_a_report_that_cannot_be_written_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=1)
    (tmp_path / "out").mkdir()
    for out in (tmp_path / "out", run.config / "x.html", Path("/"), Path("/proc/none")):
        assert main(["report", str(run.path), "--out", str(out)]) == 1
        assert f"{out} cannot be written" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
