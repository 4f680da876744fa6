"""`bicot export`: a checkpoint, or a run's policy, in either layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from policy.checkpoint import open_checkpoint
from policy.errors import CheckpointError
from policy.export import Exported, export_checkpoint
from recipe.errors import RunError
from recipe.run_folder import RunFolder


def export(source: Path, out: Path, to: Literal["hf", "original"], base: Path | None) -> Exported:
    """Write the checkpoint folder `source`, or the exported policy of the run folder `source`, into `out`.

    Raises:
        RunError: there is no checkpoint, it is damaged, `out` is not empty, or `base` does not fit.
    """
    run = RunFolder(source)
    if run.config.is_file() and not run.policy.is_dir():
        raise RunError(f"{source} holds no exported policy yet; a run writes it when it ends")
    try:
        checkpoint = open_checkpoint(run.policy if run.config.is_file() else source)
        return export_checkpoint(checkpoint, out, to, open_checkpoint(base) if base else None)
    except CheckpointError as error:
        raise RunError(str(error)) from error
