"""Which policy is to draw. Imports no engine, so that a wrong source is told at once."""

from __future__ import annotations

from pathlib import Path

from recipe.config import RunConfig, load_config
from recipe.errors import RunError
from recipe.run_folder import RunFolder


def policy_source(source: Path) -> RunConfig:
    """The run config to draw with.

    `source` is a run folder, whose exported policy draws, or a run config, whose `policy.checkpoint` does.

    Raises:
        RunError: it is neither, or the run has exported no policy yet.
        ConfigError: the config cannot be used.
    """
    if source.is_file():
        return load_config(source)
    folder = RunFolder(source)
    if not folder.config.is_file():
        raise RunError(f"{source} is neither a run config nor a run folder")
    if not folder.policy.is_dir():
        raise RunError(f"{source} holds no exported policy yet; a run writes it when it ends")
    config = load_config(folder.config)
    return config.model_copy(update={"policy": config.policy.model_copy(update={"checkpoint": str(folder.policy)})})
