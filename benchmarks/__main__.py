"""`python -m benchmarks NAME`: run one benchmark, print its tables, and write them as JSON."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from pathlib import Path

BENCHMARKS = {
    "sampler": "image tokens a second, beside a plain loop and transformers' generate",
    "learner": "tokens a second and peak memory of a training step, beside a plain step",
    "loop": "steps and pictures a second of the whole system, beside its stages in turn in one process",
    "buffer": "trajectory groups a second, in and out of Redis",
    "weights": "seconds to publish and apply weights, by size and transport",
    "rewards": "pictures a second, by reward and batch size",
    "gpu": "what one GPU does with sampler, scorer and detector, part by part; torch and transformers suffice",
    "startup": "seconds until a run's first step, and the imports that they go into",
}
GPU_PARTS = ("ceilings", "pcie", "attention", "detector", "memory", "sampler", "gap", "scorer")


def main(arguments: list[str] | None = None) -> int:
    """Run a benchmark; 0 when it ran to its end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:10}{what}" for name, what in BENCHMARKS.items()),
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as well")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cpu; of gpu: cuda")
    parser.add_argument("--scale", choices=["tiny", "100m", "1b", "7b"], help="default: tiny; of gpu: 7b")
    parser.add_argument("--part", nargs="+", choices=GPU_PARTS, default=[], help="of gpu: these parts only")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each case, of which the median counts")
    asked = parser.parse_args(arguments)
    if asked.json and not asked.json.parent.is_dir():
        parser.error(f"--json {asked.json}: there is no folder {asked.json.parent}")
    if asked.repeats < 1:
        parser.error("--repeats: at least 1")
    if asked.part and asked.name != "gpu":
        parser.error(f"--part: {asked.name} has no parts; only gpu has")
    asked.device = asked.device or ("cuda" if asked.name == "gpu" else "cpu")
    asked.scale = asked.scale or ("7b" if asked.name == "gpu" else "tiny")
    logging.basicConfig(level=logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("DS_ACCELERATOR", asked.device)  # or DeepSpeed says that it had to guess
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    from benchmarks.report import Report

    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this machine")
    benchmark = importlib.import_module(f"benchmarks.{asked.name}")
    report = Report(asked.name, asked.device, asked.scale, asked.repeats, asked.json)
    if asked.part:
        benchmark.run(report, asked.part)
    else:
        benchmark.run(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
