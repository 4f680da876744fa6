"""Where a run's curves go beside Prometheus: TensorBoard, and Weights & Biases where the config asks for it."""

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
        """Write what is left."""


class TensorBoard:
    """Events in the run folder: the config as a text, and all that a run tells."""

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
    """A run of W&B with the run's own name, which a resumed run goes on with.

    Its config is the run's, by dotted keys that runs can be filtered by, without secrets.
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
            # Its own view of the machine holds the command line, whose overrides may hold passwords.
            settings=wandb.Settings(console="off", x_disable_meta=True),
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
