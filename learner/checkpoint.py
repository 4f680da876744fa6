"""Checkpoints of a run: step, weights, optimizer, schedule and random states, saved together or not at all.

    checkpoints/
        step-000040/
            state.json          format, step, ranks, trained tensors, every file with its size
            engine/...          what DeepSpeed saves; without frozen weights, which come from the policy's folder
            random-00000.pt     random states of rank 0; one a rank
        step-000060.tmp/        a save that was cut short; ignored, and removed by the next save

All ranks must see the same folder (a shared file system, if they are on several machines).
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from learner.engine import LearnerEngine
from policy.janus import CheckpointError

log = logging.getLogger(__name__)

FORMAT = 1
_ENGINE = "engine"


def save(engine: LearnerEngine, folder: str | Path, keep: int) -> Path:
    """Write the checkpoint of `engine.steps`; a collective. The newest `keep` complete checkpoints stay on disk."""
    folder = Path(folder)
    final = folder / f"step-{engine.steps:06d}"
    draft = final.with_suffix(".tmp")
    if engine.rank == 0:
        for left in folder.glob("step-*.tmp"):
            shutil.rmtree(left)
        draft.mkdir(parents=True)
    dist.barrier()
    engine.engine.save_checkpoint(str(draft), tag=_ENGINE, save_latest=False, exclude_frozen_parameters=True)
    torch.save(_random_states(), draft / f"random-{engine.rank:05d}.pt")
    dist.barrier()
    if engine.rank == 0:
        files = {str(path.relative_to(draft)): path.stat().st_size for path in _files(draft)}
        state = {
            "format": FORMAT,
            "step": engine.steps,
            **_layout(engine),
            "files": files,
        }
        (draft / "state.json").write_text(json.dumps(state, indent=1))
        _sync([*_files(draft), *(path for path in draft.rglob("*") if path.is_dir()), draft])
        if final.exists():
            final.rename(old := final.with_suffix(".old.tmp"))
            shutil.rmtree(old)
        draft.rename(final)
        _sync([folder])
        for path in complete(folder)[keep:]:
            shutil.rmtree(path)
    dist.barrier()
    return final


def complete(folder: str | Path) -> list[Path]:
    """The complete checkpoints of a run, newest first; skips others with a warning that names the fault."""
    found = []
    for path in sorted(Path(folder).glob("step-*[0-9]"), reverse=True):
        try:
            read_state(path)
        except CheckpointError as error:
            log.warning("ignored: %s", error)
        else:
            found.append(path)
    return found


def newest(folder: str | Path, at_most: int | None = None) -> Path | None:
    """The newest complete checkpoint, with `at_most` of those up to that step; None where there is none."""
    for path in complete(folder):
        if at_most is None or read_state(path)["step"] <= at_most:
            return path
    return None


def read_state(path: Path) -> dict[str, Any]:
    """The `state.json` of a checkpoint, after a check that every file exists with its size.

    Raises:
        CheckpointError: names the file that is missing, cut short or not readable.
    """
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        version, step, files = state["format"], state["step"], dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path / 'state.json'} cannot be read: {error}") from error
    if version != FORMAT:
        raise CheckpointError(f"checkpoint {path / 'state.json'} has format {version}; this version reads {FORMAT}")
    if type(step) is not int:
        raise CheckpointError(f"checkpoint {path / 'state.json'} has step {step!r}, which is no whole number")
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {file} is missing")
        if file.stat().st_size != size:
            raise CheckpointError(f"checkpoint {file} has {file.stat().st_size} bytes instead of {size}")
    return state


def load(engine: LearnerEngine, path: str | Path) -> None:
    """Restore `engine` to the state saved in `path`; a collective.

    Raises:
        CheckpointError: a file is missing or damaged, or the checkpoint has another policy, number of ranks or ZeRO
            stage. The engine is then unusable.
    """
    path = Path(path)
    state = read_state(path)
    for key, value in _layout(engine).items():
        if state.get(key) != value:
            told = "other tensors" if key == "trained" else f"{key} {state.get(key)}, this run has {value}"
            raise CheckpointError(f"checkpoint {path / 'state.json'} does not fit: it holds {told}")
    _check_bytes(engine, [path / name for name in state["files"] if name.endswith(".pt")])
    loaded, _ = engine.engine.load_checkpoint(str(path), tag=_ENGINE, load_module_strict=False)
    if loaded is None:
        raise CheckpointError(f"checkpoint {path / _ENGINE} holds nothing that DeepSpeed can load")
    _set_random_states(torch.load(path / f"random-{engine.rank:05d}.pt", weights_only=True))


def _check_bytes(engine: LearnerEngine, files: list[Path]) -> None:
    """Check the files' checksums, which torch.load does not. Each rank checks a share; all ranks fail together."""
    damaged: list[list[str]] = [[] for _ in range(engine.ranks)]
    mine = [str(file) for file in files[engine.rank :: engine.ranks] if _is_damaged(file)]
    dist.all_gather_object(damaged, mine)
    if names := sorted(name for found in damaged for name in found):
        raise CheckpointError(f"checkpoint {names[0]} is damaged: its checksums do not fit its bytes")


def _layout(engine: LearnerEngine) -> dict[str, Any]:
    """The properties that must agree between a checkpoint and the run that loads it."""
    return {
        "ranks": engine.ranks,
        "zero_stage": engine.config.zero_stage,
        "trained": engine.trained_shapes(),
        "adapter_scale": engine.adapter_scale,
    }


def _random_states() -> dict[str, Any]:
    numpy = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": {**numpy, "state": {"key": numpy["state"]["key"].tolist(), "pos": numpy["state"]["pos"]}},
    }


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _is_damaged(file: Path) -> bool:
    """Whether a file of torch.save (a zip archive) fails its own checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is not None
    except (zipfile.BadZipFile, OSError):
        return True


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
