"""Measures the start of a run: the imports of each kind of process, and the phases of a run.

A process that computes with torch, transformers or vLLM spends its start on imports. Imports take CPU time, and the
processes that Ray starts cannot share them. Their sum, divided by the machine's cores, is the lower bound of a start.
The baseline is one process that imports the same libraries, as a script does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import psutil

from benchmarks.report import Report, Value

ROOT = Path(__file__).parents[1]
PROCESSES = {
    "driver": (1, "cluster.run"),
    "semantic": (1, "actors.semantic"),
    "image": (1, "actors.image_actor"),
    "learner": (1, "learner.rank"),
    "rewards, Serve's controller": (5, "rewards.replica"),
}
"""How many of a shapes run are alike, and the module that holds their imports."""
PARTS = ("torch", "torch._dynamo", "transformers.models.janus.modeling_janus", "ray", "vllm", "deepspeed")
"""Imported before the module, in this order, where the module needs them: each pays for what was not there yet."""
PHASES = {
    "checking": "checking",
    "starting Redis": "Redis, Ray",
    "starting the pools": "pools",
    "metrics at": "ready",
}
KINDS = ("ray::ConcurrentWorker", "ray::Worker", "ray::ServeReplica", "ray::ServeController", "redis-server")
"""Names of processes: semantic and image actor, the learner's ranks, rewards."""
_DEADLINE_S = 600.0

_IMPORTS = """
import json, sys, time
parts, module = json.loads(sys.argv[1]), sys.argv[2]
spent, last = {}, time.process_time()
for name in [*parts, module]:
    __import__(name)
    now = time.process_time()
    spent[name], last = now - last, now
print(json.dumps(spent))
"""
_NEEDED = (
    "import json, sys; __import__(sys.argv[1]); print(json.dumps([n for n in sys.argv[2:] if n in sys.modules]))"
)


def run(report: Report) -> None:
    """Measure the imports of each kind of process, and a run of one step.

    Raises:
        SystemExit: another scale than tiny, or a process failed.
    """
    if report.scale != "tiny" or report.device != "cpu":
        sys.exit("startup: runs at --scale tiny on a CPU")
    total = _imports(report)
    _phases(report, total)


def _imports(report: Report) -> float:
    """CPU seconds of all processes' imports."""
    rows: list[dict[str, Value]] = []
    total = 0.0
    for process, (count, module) in PROCESSES.items():
        needed = json.loads(_python(_NEEDED, module, *PARTS))
        spent = [json.loads(_python(_IMPORTS, json.dumps(needed), module)) for _ in range(report.repeats)]
        row: dict[str, Value] = {"process": process, "of them": float(count)}
        for part in PARTS:
            name = "transformers" if part.startswith("transformers") else part
            row[name] = median(one[part] for one in spent) if part in needed else None
        row["the rest"] = median(one[module] for one in spent)
        row["CPU s"] = median(sum(one.values()) for one in spent)
        total += count * float(row["CPU s"] or 0)
        rows.append(row)
    report.table(
        "Imports, CPU seconds",
        rows,
        "transformers' models import torch._dynamo themselves; it brings sympy and torch.distributed.tensor.",
    )
    return total


def _phases(report: Report, imports: float) -> None:
    found = [_run() for _ in range(report.repeats)]
    runs = [reached for reached, _ in found]
    cores = len(os.sched_getaffinity(0))
    script = ["torch", "transformers.models.janus.modeling_janus", "vllm", "deepspeed"]
    alone = median(_seconds(script) for _ in range(report.repeats))
    first = median(one["step 1"] for one in runs)
    rows: list[dict[str, Value]] = [{"until": name, "s": median(one[name] for one in runs)} for name in runs[0]]
    rows.append({"until": f"imports alone, over {cores} cores", "s": imports / cores})
    rows.append({"until": "a script has imported torch, transformers, vLLM, DeepSpeed", "s": alone})
    report.table(
        "From `bicot train deploy/runs/shapes.yaml` to the first step, seconds",
        [row | {"of step 1": float(row["s"] or 0) / first} for row in rows],
    )
    spent = [processes for _, processes in found]
    kinds = sorted(dict.fromkeys(kind for one in spent for kind in one), key=lambda kind: -spent[0].get(kind, 0.0))
    table = {kind: median(one.get(kind, 0.0) for one in spent) for kind in kinds}
    report.table(
        "CPU seconds of a run's processes until then",
        [{"processes": kind, "CPU s": seconds} for kind, seconds in [*table.items(), ("all", sum(table.values()))]],
    )


def _run() -> tuple[dict[str, float], dict[str, float]]:
    """Seconds until each phase of a run of one step and until its end; CPU seconds by process at that time."""
    with tempfile.TemporaryDirectory(prefix="bicot-startup-") as folder:
        command = [
            sys.executable, "-m", "cluster", "train", "deploy/runs/shapes.yaml", f"folder={folder}/run", "steps=1",
            "held_out=null",
        ]  # fmt: skip
        began, reached = time.monotonic(), dict[str, float]()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        limit = threading.Timer(_DEADLINE_S, process.kill)
        limit.start()
        try:
            assert process.stdout
            told = []
            for line in process.stdout:
                told.append(line)
                for words, name in {**PHASES, "step ": "step 1"}.items():
                    if words in line and name not in reached and (name != "step 1" or "1/1" in line):
                        reached[name] = time.monotonic() - began
                        spent = _cpu_seconds(process.pid)
            if process.wait(_DEADLINE_S) or "step 1" not in reached:
                sys.exit(f"startup: the run failed:\n{''.join(told)[-3000:]}")
        finally:
            limit.cancel()
            if process.poll() is None:
                process.kill()
        return reached, spent


def _cpu_seconds(pid: int) -> dict[str, float]:
    """CPU seconds so far of a run's processes, by kind; those that have ended are not among them."""
    driver = psutil.Process(pid)
    spent: dict[str, float] = {}
    for process in (driver, *driver.children(recursive=True)):
        try:
            words, times = " ".join(process.cmdline()) or process.name(), process.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        kind = "driver" if process == driver else next((kind for kind in KINDS if kind in words), "Ray's own")
        spent[kind] = spent.get(kind, 0.0) + times.user + times.system
    return spent


def _seconds(modules: list[str]) -> float:
    began = time.monotonic()
    _python("import sys; [__import__(name) for name in sys.argv[1:]]", *modules)
    return time.monotonic() - began


def _python(code: str, *arguments: str) -> str:
    """The last line that a fresh process prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_DEADLINE_S,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"startup: {arguments} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().rpartition("\n")[2]
