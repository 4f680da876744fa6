"""Trackers of a run's curves besides Prometheus: TensorBoard, and Weights & Biases on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from recipe.check import require_wandb
from recipe.config import MetricsConfig, WandbConfig
from recipe.public_config import as_yaml, flat_keys, public_config
from recipe.run_folder import RunFolder


class Tracker(Protocol):
    """Takes curves and samples, by training step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""

    def samples(self, step: int, pictures: np.ndarray, texts: list[str]) -> None:
        """Pictures (uint8 [N, H, W, 3]) and their CoTs."""

    def close(self) -> None:
        """Write the remaining data."""


class TensorBoard:
    """TensorBoard events in the run folder: the config as a text, all curves and all samples."""

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder.tensorboard)
        config = as_yaml(public_config(folder.config.read_text("utf-8")))
        self._writer.add_text("config", f"```yaml\n{config}```")  # which TensorBoard shows as Markdown

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def samples(self, step: int, pictures: np.ndarray, texts: list[str]) -> None:
        """See `Tracker`."""
        self._writer.add_images("samples", pictures, step, dataformats="NHWC")
        self._writer.add_text("samples", "\n\n".join(texts), step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run with the run's own name; a resumed run continues it.

    Its config has the run's keys, dotted and without secrets, so that people can filter by them.
    """

    def __init__(self, folder: RunFolder, config: WandbConfig, run: str) -> None:
        require_wandb()
        import wandb

        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            name=folder.path.name,
            id=run,
            resume="allow",
            dir=str(folder.path),
            config=flat_keys(public_config(folder.config.read_text("utf-8"))),
            allow_val_change=True,  # a resumed run may be longer, say
            # W&B's machine data include the command line; overrides in it may hold passwords.
            settings=wandb.Settings(console="off", x_disable_meta=True),
        )
        # Training steps and held-out scores are logged at different times; "step" is the x axis of both.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({**values, "step": step})

    def samples(self, step: int, pictures: np.ndarray, texts: list[str]) -> None:
        """See `Tracker`."""
        images = [self._wandb.Image(picture, caption=text) for picture, text in zip(pictures, texts, strict=True)]
        self._run.log({"samples": images, "step": step})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


def trackers(folder: RunFolder, config: MetricsConfig, run: str) -> list[Tracker]:
    """The trackers that the config asks for.

    Raises:
        RunError: as `require_wandb`.
    """
    wanted: list[Tracker] = [TensorBoard(folder)] if config.tensorboard else []
    return [*wanted, WeightsAndBiases(folder, config.wandb, run)] if config.wandb else wanted
