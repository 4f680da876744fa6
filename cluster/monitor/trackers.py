"""Where a run's curves go beside Prometheus: TensorBoard, and Weights & Biases where the config asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from recipe.check import require_wandb
from recipe.config import MetricsConfig, WandbConfig
from recipe.run_folder import RunFolder


class Tracker(Protocol):
    """Takes curves and samples, by training step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""

    def samples(self, step: int, pictures: np.ndarray, texts: list[str]) -> None:
        """Pictures (uint8 [N, H, W, 3]) and their CoTs."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Events in the run folder."""

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder.tensorboard)

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
    """A run of W&B with the run's own name, which a resumed run goes on with."""

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
            config={"run_config": folder.config.read_text("utf-8")} if folder.config.is_file() else None,
            settings=wandb.Settings(console="off"),
        )
        # A run's steps and held-out scores come at their own pace; "step" is the axis of all of them.
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
    """Those that the config asks for.

    Raises:
        RunError: as `require_wandb`.
    """
    wanted: list[Tracker] = [TensorBoard(folder)] if config.tensorboard else []
    return [*wanted, WeightsAndBiases(folder, config.wandb, run)] if config.wandb else wanted
