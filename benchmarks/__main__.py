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
    "startup": "seconds until a run's first step, and the imports that they go into",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a benchmark; 0 when it ran to its end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:10}{what}" for name, what in BENCHMARKS.items()),
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there as well")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--scale", choices=["tiny", "100m", "1b", "7b"], default="tiny")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each case, of which the median counts")
    asked = parser.parse_args(arguments)
    if asked.json and not asked.json.parent.is_dir():
        parser.error(f"--json {asked.json}: there is no folder {asked.json.parent}")
    if asked.repeats < 1:
        parser.error("--repeats: at least 1")
    logging.basicConfig(level=logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("DS_ACCELERATOR", asked.device)  # or DeepSpeed says that it had to guess
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch

    from benchmarks.report import Report

    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU on this machine")
    benchmark = importlib.import_module(f"benchmarks.{asked.name}")
    report = Report(asked.name, asked.device, asked.scale, asked.repeats)
    benchmark.run(report)
    if asked.json:
        report.write(asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
