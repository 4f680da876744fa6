"""`make` on machines that bicot is not built for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from paths import ROOT


def test_another_system_gets_a_sentence(tmp_path: Path) -> None:
    uname = tmp_path / "bin" / "uname"
    uname.parent.mkdir()
    uname.write_text('#!/bin/sh\n[ "$1" = -s ] && echo Darwin || echo arm64\n')
    uname.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "requirements/cpu.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    environment = {**os.environ, "PATH": f"{uname.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0 and not (tmp_path / ".venv").exists()
    assert "needs Linux on x86-64" in done.stdout and "Darwin on arm64" in done.stdout
