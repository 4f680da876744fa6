"""The suite's own rules: what a quick test may import, in which order files start, and that no process is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import SUPPORT

SLOW = "import pytest\n@pytest.mark.slow\ndef test_slow():\n    import ray\n"
INSIDE = "def test_inside():\n    import ray\n"


def suite(folder: Path, *arguments: str, **files: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on these files, by path without .py and with two underscores for a slash."""
    files |= {"ray": "", "pytest_ini": "[pytest]\nmarkers = slow\n"}
    for name, text in files.items():
        path = folder / ("pytest.ini" if name == "pytest_ini" else f"{name.replace('__', '/')}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "quick_tests", "-p", "side_by_side", "-v", *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{SUPPORT}{os.pathsep}{folder}"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize("text", ["import ray\ndef test_top(): pass\n", INSIDE])
def test_a_quick_test_brings_no_system_into_its_process(tmp_path: Path, text: str) -> None:
    done = suite(tmp_path, tests__unit__room__test_one=text)
    assert done.returncode != 0 and "brings Ray into its process" in done.stdout, done.stdout


def test_slow_tests_and_systems_may(tmp_path: Path) -> None:
    done = suite(tmp_path, tests__unit__room__test_one=SLOW, tests__system__test_two=INSIDE)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


def test_side_by_side_the_longest_files_of_systems_come_first(tmp_path: Path) -> None:
    names = ("tests__unit__test_a", "tests__system__test_a_pool", "tests__system__test_run")
    arguments = ("-n", "1", "--dist", "loadfile", "--no-loadscope-reorder", "--import-mode", "importlib")
    done = suite(tmp_path, *arguments, **dict.fromkeys(names, "def test_it(): pass\n"))
    found = [line.split()[-1].split("::")[0] for line in done.stdout.splitlines() if " PASSED " in line]
    assert found == ["tests/system/test_run.py", "tests/system/test_a_pool.py", "tests/unit/test_a.py"]


@pytest.mark.parametrize("when", ["pytest_runtest_call", "pytest_sessionfinish"])
def test_a_process_that_dies_fails_the_run(tmp_path: Path, when: str) -> None:
    dies = f"import os\ndef {when}():\n    if 'PYTEST_XDIST_WORKER' in os.environ: os._exit(1)\n"
    arguments = ("-n", "1", "--max-worker-restart", "0")
    done = suite(tmp_path, *arguments, conftest=dies, tests__system__test_one="def test_it(): pass\n")
    assert done.returncode != 0, done.stdout
    assert "a process of the tests was lost" in done.stdout
