"""The driver of `make mutants` tells what tests notice from what they do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import SUPPORT

SUMS = """
LIMIT = 3
LARGE = 10


def held(values: list[int]) -> bool:
    return len(values) < LIMIT


def unheld(a: int, b: int) -> int:
    return a * b


def endless(n: int) -> int:
    while n > 0:
        n = n - 1
    return n
"""
TESTS = """
from room.sums import endless, held, unheld


def test_held() -> None:
    assert held([1, 2]) and not held([1, 2, 3])


def test_what_a_division_gives_too() -> None:
    assert unheld(5, 1) == 5


def test_an_end() -> None:
    assert endless(3) == 0
"""


def run(root: Path, *more: str) -> str:
    command = [sys.executable, SUPPORT / "mutants.py", "room/sums.py", "--root", root, "--slack", "5", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_change_that_no_test_notices_is_shown(tmp_path: Path) -> None:
    for name, text in (("room/__init__.py", ""), ("room/sums.py", SUMS), ("tests/unit/room/test_sums.py", TESTS)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    said = run(tmp_path)
    assert "room/sums.py:3\n-LARGE = 10\n+LARGE = 11" in said
    assert "room/sums.py:11\n-    return a * b\n+    return a / b" in said
    summary = said.partition("Noticed by no test:")[2]
    assert "LIMIT" not in summary and "n - 1" not in summary
    assert "stuck room/sums.py:16" in said  # n + 1 never ends
    assert (tmp_path / "room/sums.py").read_text() == SUMS
    kept = (tmp_path / "build/mutants.jsonl").read_text()
    assert run(tmp_path).partition("Noticed by no test:")[2].rpartition(":")[2] == summary.rpartition(":")[2]
    assert (tmp_path / "build/mutants.jsonl").read_text() == kept  # nothing was tried twice
