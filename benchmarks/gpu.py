"""Measures the model of a scale on one GPU, part by part: the figures that no CPU can give.

Each part builds its own model and frees it afterwards; it needs only torch and transformers. A part that fails
reports this in a table, and the other parts still run.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence

from benchmarks import gpu_kernels, gpu_model
from benchmarks.gpu_memory import release
from benchmarks.report import Report

PARTS: dict[str, Callable[[Report], None]] = {
    "ceilings": gpu_kernels.ceilings,
    "pcie": gpu_kernels.pcie,
    "attention": gpu_kernels.attention,
    "detector": gpu_kernels.detector,
    "memory": gpu_model.memory,
    "sampler": gpu_model.sampler,
    "gap": gpu_model.gap,
    "scorer": gpu_model.scorer,
}
CUDA_ONLY = ("pcie", "memory")


def run(report: Report, parts: Sequence[str] = ()) -> None:
    """Run the named parts, or all that the device has.

    Raises:
        SystemExit: a part failed, or cannot run on a CPU.
    """
    chosen = parts or [part for part in PARTS if report.device == "cuda" or part not in CUDA_ONLY]
    if report.device == "cpu" and (wrong := [part for part in chosen if part in CUDA_ONLY]):
        sys.exit(f"gpu: {', '.join(wrong)}: nothing to measure on a CPU; leave it out of --part")
    failed = []
    for part in chosen:
        try:
            PARTS[part](report)
        except Exception as error:  # what broke is a finding, too, and the other parts run without it
            traceback.print_exc()
            reason = (str(error).splitlines() or [""])[0]
            report.table(f"{part}: failed", [{"case": part, "error": f"{type(error).__name__}: {reason}"}])
            failed.append(part)
        release(report.device)
    if failed:
        sys.exit(f"gpu: failed: {', '.join(failed)}")
