"""The run config: one YAML file plus dotted overrides, validated by every room's own model."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from actors.config import ImageConfig, SemanticConfig
from learner.config import LearnerConfig
from policy.config import PolicyConfig
from policy.settings import GiB, Groups, MiB, Pictures, Processes, Seconds, Settings, Steps, Tries, Versions
from recipe.compose import Composed, compose
from recipe.errors import ConfigError, NoInstruction
from recipe.keys import documented, hint
from recipe.public_config import flat_keys, shown_value
from recipe.yaml_text import dump
from rewards.config import RewardsConfig
from transport.config import BufferConfig, WeightsConfig


class PromptsConfig(Settings):
    """Where prompts come from."""

    train: str = Field(description="JSON Lines prompt file to train on.")
    shuffle: bool = Field(True, description="Shuffle every epoch with the run's seed; false keeps the file's order.")
    exclude: tuple[str, ...] = Field(
        (),
        description="Files of prompts to leave out, e.g. a benchmark's: JSON Lines, or text, one prompt per line.",
    )


class RolloutConfig(Settings):
    """How many trajectories a step has, and how far the rollout may run ahead of the learner."""

    group_size: Pictures = Field(8, ge=2, description="Members of a group: rollouts of one prompt (G).")
    groups_per_step: Groups = Field(16, ge=1, description="Groups in one training step; each group has one prompt.")
    staleness: Versions = Field(
        0, ge=0, description="Weight versions that a trajectory may lag behind; 0 is strictly on-policy (the paper)."
    )
    groups_in_flight: Groups | None = Field(
        None, ge=1, description="Groups rolled out at a time; by default all admitted ones. With 1 the engines see "
        "the same batches in every run, whatever the timing; with staleness 0 as well, a run repeats to the bit."
    )  # fmt: skip
    retries: Tries = Field(2, ge=0, description="Retries of a group after a failed stage, before the run ends.")
    keep_groups: Steps = Field(
        0, ge=0, description="Number of newest steps whose groups stay in the run's folder for `bicot replay`, in "
        "addition to those of unfinished steps; 0 keeps none."
    )  # fmt: skip


class HeldOutConfig(Settings):
    """Held-out prompts. One reward service scores them; give it weight 0 to keep it out of training."""

    metric: str = Field(description="Name of the reward service; its mean is the held-out score.")
    dev: str | None = Field(None, description="Prompt file for tuning, scored every `every` steps.")
    test: str | None = Field(None, description="Prompt file scored before the first and after the last step.")
    every: Steps = Field(50, ge=1, description="Steps between two scorings of dev.")
    dev_members: Pictures = Field(1, ge=1, description="Pictures of each dev prompt.")
    test_members: Pictures = Field(1, ge=1, description="Pictures of each test prompt.")
    samples: Pictures = Field(12, ge=0, description="Held-out pictures that each scoring keeps for the report.")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.dev is None and self.test is None:
            raise ValueError("give dev or test, or leave held_out out")
        return self


class RayConfig(Settings):
    """The Ray cluster of the run."""

    address: str | None = Field(
        None, description="Address of a running cluster, or 'auto'. Without it a Ray job joins its cluster, and a "
        "plain process starts a local one."
    )  # fmt: skip
    cpus: int | None = Field(None, ge=1, description="CPUs of a local cluster; all of the machine's by default.")
    gpu_memory_gb: GiB | None = Field(
        None, gt=0, description="Memory of one GPU in GiB, for `bicot check`; by default that of this machine's GPU."
    )
    object_store_mb: MiB = Field(512, ge=80, description="Object store of a local cluster, in MiB.")
    start_deadline_s: Seconds = Field(300.0, gt=0, description="Seconds within which every pool must be up.")
    autoscaling: bool = Field(
        False,
        description="true: the cluster grows on demand. Pools may ask for more than it has, and wait for it.",
    )
    restarts: Processes = Field(
        3, ge=0, description="How many dead or stuck actors a pool replaces before the run ends."
    )


class CheckpointConfig(Settings):
    """When the run saves checkpoints."""

    every: Steps = Field(50, ge=1, description="Steps between two checkpoints; the last step always writes one.")


class WandbConfig(Settings):
    """Weights & Biases; install the package wandb separately."""

    project: str = Field(min_length=1, description="Project that the run belongs to.")
    entity: str | None = Field(None, description="Team or user; W&B's default if left out.")
    mode: Literal["online", "offline"] = Field("online", description="offline: W&B keeps its data in the run folder.")


class MetricsConfig(Settings):
    """The run's metrics: the page for Prometheus, TensorBoard, W&B."""

    host: str = Field("127.0.0.1", description="Interface of the /metrics page; loopback only by default.")
    port: int | None = Field(
        0, ge=0, le=65535, description="Port of the /metrics page; 0: any free port, null: no page."
    )
    tensorboard: bool = Field(True, description="Write TensorBoard events into the run folder.")
    wandb: WandbConfig | None = Field(None, description="Log to Weights & Biases as well.")


class RunConfig(Settings):
    """Everything a run is made of."""

    folder: str = Field(
        min_length=1, description="The run's folder: config, logs, metrics, checkpoints, samples, report."
    )
    seed: int = Field(0, ge=0, description="Seed of prompt order, sampling and initialisation.")
    steps: Steps = Field(ge=1, description="Training steps.")
    policy: PolicyConfig
    prompts: PromptsConfig
    rollout: RolloutConfig = RolloutConfig()
    semantic: SemanticConfig = SemanticConfig()
    image: ImageConfig = ImageConfig()
    rewards: RewardsConfig
    learner: LearnerConfig = LearnerConfig()
    buffer: BufferConfig = BufferConfig()
    weights: WeightsConfig = WeightsConfig()
    held_out: HeldOutConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    ray: RayConfig = RayConfig()
    metrics: MetricsConfig = MetricsConfig()

    @field_validator("folder")
    @classmethod
    def _whole_path(cls, folder: str) -> str:
        if folder.startswith("~"):
            raise ValueError("~ is not expanded here; write the whole path")
        return folder

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [service.name for service in self.rewards.services]
        if self.held_out and self.held_out.metric not in names:
            raise ValueError(f"held_out.metric: {self.held_out.metric!r} is none of the reward services {names}")
        if self.learner.lora and self.policy.trained != "language_model":
            raise ValueError("learner.lora: an adapter trains the language model alone; set policy.trained so")
        self._check_broadcast()
        ahead = self.rollout.groups_per_step * (self.rollout.staleness + 1)
        if self.buffer.capacity < ahead:
            raise ValueError(
                f"buffer.capacity: {self.buffer.capacity} groups cannot hold the {ahead} that "
                "rollout.groups_per_step x (rollout.staleness + 1) lets in"
            )
        return self

    def _check_broadcast(self) -> None:
        """Refuse a broadcast of weights between pools that need different backends."""
        if self.weights.transport != "nccl":
            return
        gpus = {"learner": self.learner.gpus, "image": self.image.gpus}
        if self.semantic.enabled:
            gpus["semantic"] = self.semantic.gpus
        table = ", ".join(f"{pool}.gpus {count:g}" for pool, count in gpus.items())
        if any(gpus.values()) and not all(gpus.values()):
            raise ValueError(
                f"weights.transport: nccl broadcasts between GPUs, or between CPUs, and these pools have both "
                f"({table}); use object_store"
            )
        if any(count % 1 for count in gpus.values()):
            raise ValueError(
                f"weights.transport: nccl refuses two members on one GPU, which fractions of a GPU share ({table}); "
                "give each pool whole GPUs, or use object_store"
            )


_PLAIN = {
    "tuple_type": "write a list, [A, B]",
    "int_parsing": "write a whole number",
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "float_parsing": "write a number",
    "float_type": "write a number",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "invalid_key": "write the key in quotes, since YAML reads no text here",
    "string_type": "write a text, in quotes where YAML reads something else",
}
"""What to do, for the errors that people make most, by pydantic's names of them."""


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run config and apply overrides such as `learner.optimizer.lr=1e-5`.

    The key `base` names a file to build on, relative to this file (see `recipe.compose`). If
    `policy.templates.instruction` is a mapping with the key `file`, the text of that file replaces it, so a resolved
    config is complete. The slot for the prompt in that text is {prompt} or {}. If the file does not exist, its name
    is looked up beside `prompts.train`.

    Raises:
        ConfigError: the file cannot be read, an override is malformed, or a key is unknown or out of bounds.
    """
    composed = compose(Path(path), overrides)
    _read_instruction(composed)
    try:
        config = RunConfig.model_validate(composed.tree)
        dump_config(config)  # a reward's options may hold what no file can
    except ValidationError as error:
        raise ConfigError(_sentences(error, composed)) from error
    except ValueError as error:
        raise ConfigError(f"{path}: rewards.services: options: cannot be written as YAML: {error}") from error
    return config


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, every default written out; `load_config` reads it back."""
    return dump(config.model_dump(mode="json"))


def differing_keys(first: RunConfig, second: RunConfig) -> list[str]:
    """Dotted keys whose values differ."""
    one, two = flat_keys(first.model_dump(mode="json")), flat_keys(second.model_dump(mode="json"))
    return [key for key in {**one, **two} if one.get(key) != two.get(key)]


def _read_instruction(composed: Composed) -> None:
    location = ("policy", "templates", "instruction")
    node: Any = composed.tree
    for key in location:
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return
    said = composed.source(location)
    if list(node) != ["file"]:
        raise ConfigError(f"{said}: policy.templates.instruction: write a text, or a mapping with the one key `file`")
    key = "policy.templates.instruction.file"
    file = Path(str(node["file"]))
    prompts = composed.tree.get("prompts")
    try:
        if not file.exists() and isinstance(prompts, dict):
            file = Path(str(prompts.get("train"))).parent / file.name
        if not file.is_file():
            raise NoInstruction(
                f"{said}: {key}: neither {node['file']} nor {file} is there; README.md says where the files of a "
                "recipe come from"
            )
        text = file.read_text(encoding="utf-8").strip()
    except NoInstruction:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{said}: {key}: {node['file']!r} cannot be read: {error}") from error
    composed.tree["policy"]["templates"]["instruction"] = text.replace("{}", "{prompt}")


def _sentences(error: ValidationError, composed: Composed) -> str:
    """The first problems with keys, each after the override or file that sets the key."""
    told = []
    for item in error.errors()[:5]:
        item["loc"] = composed.key(item["loc"])
        # An error about several keys together, or about a missing key, has no single source.
        nobody = item["type"] in ("value_error", "missing")
        told.append((str(composed.path) if nobody else composed.source(item["loc"]), _sentence(item)))
    by_source = groupby(told, key=lambda one: one[0])
    return "; ".join(f"{source}: {'; '.join(text for _, text in group)}" for source, group in by_source)


def _sentence(item: ErrorDetails) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{hint(key, documented(RunConfig))}"
    if item["type"] in ("model_type", "model_attributes_type"):
        return f"{key}: is a section of keys, not {'null' if item['input'] is None else 'a value'}"
    text = _PLAIN.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], str | int | float | bool) and item["type"] != "value_error":
        text += f", not {shown_value(item['loc'], item['input'])!r}"
    return f"{key}: {text}" if key else text
