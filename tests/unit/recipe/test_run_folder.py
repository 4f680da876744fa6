"""A run's own files: what a resume reads and rewrites, and what it refuses to touch."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe.errors import RunError
from recipe.run_folder import RunFolder, append_json, read_json_lines

ODD = "a\u2028b\u0085c\x0b\u2029"
"""Ends of lines to str.splitlines(), and to nobody who writes JSON Lines."""


def run_of(path: Path, steps: int) -> RunFolder:
    folder = RunFolder(path)
    for step in range(1, steps + 1):
        append_json(folder.metrics, {"step": step, f"reward_by_task/x/{ODD}": 0.5})
        append_json(folder.held_out, {"step": step, "split": "dev", "scores": {ODD: 0.5, "all": 0.5}})
    return folder


def test_a_rewind_drops_later_steps_only_whatever_their_families_are_called(tmp_path: Path) -> None:
    folder = run_of(tmp_path, 3)
    with folder.metrics.open("a") as file:
        file.write('\n{"step": 4, "reward_')  # a blank line, and a row that a kill cut short
    assert [row["step"] for row in read_json_lines(folder.metrics)] == [1, 2, 3]
    folder.rewind(2)
    for path in (folder.metrics, folder.held_out):
        assert [row["step"] for row in read_json_lines(path)] == [1, 2]
    assert read_json_lines(folder.held_out)[0]["scores"] == {ODD: 0.5, "all": 0.5}


@pytest.mark.parametrize(
    "line", [b'{"step": 2, "rew', b"5", b"{}", b'{"step": null}', b'{"step": 1, "x": "\xff"}', b"[" * 9999]
)
def test_a_broken_line_is_told_and_nothing_rewritten(line: bytes, tmp_path: Path) -> None:
    folder = run_of(tmp_path, 3)
    first, _, third = folder.held_out.read_bytes().splitlines()
    folder.held_out.write_bytes(b"\n".join([first, line, third, b""]))
    before = [path.read_bytes() for path in (folder.metrics, folder.held_out)]
    with pytest.raises(RunError, match=r"held_out\.jsonl:2 is "):
        folder.rewind(1)
    assert [path.read_bytes() for path in (folder.metrics, folder.held_out)] == before
