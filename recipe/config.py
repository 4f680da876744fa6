"""The run config: one YAML file plus dotted overrides, composed of every room's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actors.config import ImageConfig, SemanticConfig
from learner.config import LearnerConfig
from policy.config import PolicyConfig
from rewards.config import RewardsConfig
from transport.config import BufferConfig, WeightsConfig


class ConfigError(ValueError):
    """A run config that cannot be used; the message names the file and the key."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptsConfig(_Config):
    """Where prompts come from."""

    train: str = Field(description="JSON Lines prompt file to train on.")
    shuffle: bool = Field(True, description="Shuffle every epoch by the run's seed; false keeps the file's order.")
    exclude: tuple[str, ...] = Field(
        (),
        description="Files of prompts to train without, e.g. a benchmark's: JSON Lines, or text, one prompt a line.",
    )


class RolloutConfig(_Config):
    """How many trajectories a step takes, and how far rollout may run ahead of learning."""

    group_size: int = Field(8, ge=2, description="Members of a group: rollouts of one prompt (G).")
    groups_per_step: int = Field(16, ge=1, description="Groups, so prompts, in one training step.")
    staleness: int = Field(
        0, ge=0, description="Weight versions that a trajectory may lag behind; 0 is strictly on-policy (the paper)."
    )
    groups_in_flight: int | None = Field(
        None, ge=1, description="Groups rolled out side by side; by default all that are admitted. With 1 engines "
        "see the same batches in every run, whatever the timing, and with staleness 0 a run repeats to the bit."
    )  # fmt: skip
    retries: int = Field(2, ge=0, description="Further tries of a group whose stage failed, before the run ends.")


class HeldOutConfig(_Config):
    """Held-out prompts, scored by one of the reward services (give it weight 0 to keep it out of training)."""

    metric: str = Field(description="Name of the reward service whose mean is the held-out score.")
    dev: str | None = Field(None, description="Prompt file scored every `every` steps, to tune on.")
    test: str | None = Field(None, description="Prompt file scored before the first and after the last step.")
    every: int = Field(50, ge=1, description="Steps between two dev scores.")
    dev_members: int = Field(1, ge=1, description="Pictures of each dev prompt.")
    test_members: int = Field(1, ge=1, description="Pictures of each test prompt.")
    samples: int = Field(12, ge=0, description="Held-out pictures kept at each scoring, for the report's grid.")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.dev is None and self.test is None:
            raise ValueError("give dev or test, or leave held_out out")
        return self


class RayConfig(_Config):
    """The Ray cluster the run lives on."""

    address: str | None = Field(
        None, description="Address of a running cluster, or 'auto'; without it a job joins its cluster, and a plain "
        "process starts a local one."
    )  # fmt: skip
    cpus: int | None = Field(None, ge=1, description="CPUs of a local cluster; all of the machine's by default.")
    gpu_memory_gb: float | None = Field(
        None, gt=0, description="Memory of one GPU in GiB, for `bicot check`; asked of this machine's GPU by default."
    )
    object_store_mb: int = Field(512, ge=80, description="Object store of a local cluster, in MiB.")
    start_deadline_s: float = Field(300.0, gt=0, description="Seconds within which every pool must be up.")
    autoscaling: bool = Field(
        False,
        description="The cluster grows on demand: pools may ask for more than it has, and wait for it to start.",
    )
    restarts: int = Field(3, ge=0, description="Dead or stuck actors that a pool replaces before the run ends.")


class CheckpointConfig(_Config):
    """When the run is saved."""

    every: int = Field(50, ge=1, description="Steps between two checkpoints; the last step always writes one.")


class WandbConfig(_Config):
    """Weights & Biases, which has to be installed beside bicot."""

    project: str = Field(min_length=1, description="Project that the run belongs to.")
    entity: str | None = Field(None, description="Team or user; W&B's default where it is left out.")
    mode: Literal["online", "offline"] = Field("online", description="offline keeps the run in its folder.")


class MetricsConfig(_Config):
    """What the run shows of itself."""

    host: str = Field("127.0.0.1", description="Interface of the /metrics page; nothing beyond loopback by default.")
    port: int | None = Field(
        0, ge=0, le=65535, description="Port of the /metrics page; 0 picks one, null serves none."
    )
    tensorboard: bool = Field(True, description="Write TensorBoard events into the run folder.")
    wandb: WandbConfig | None = Field(None, description="Log to Weights & Biases as well.")


class RunConfig(_Config):
    """Everything a run is made of."""

    folder: str = Field(description="The run's folder: config, logs, metrics, checkpoints, samples, report.")
    seed: int = Field(0, ge=0, description="Seed of prompt order, sampling and initialisation.")
    steps: int = Field(ge=1, description="Training steps.")
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
        """Refuse a broadcast of weights between pools that no one backend serves."""
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


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a run config and apply overrides such as `learner.optimizer.lr=1e-5`.

    Where `policy.templates.instruction` is a mapping with the key `file`, the text of that file takes its place, so
    that a resolved config holds all that was asked. The slot for the prompt is {prompt} or {} in it. A file that is
    not there is looked for by its name beside `prompts.train`.

    Raises:
        ConfigError: the file cannot be read, an override is malformed, or a key is unknown or out of bounds.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such run config") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a run config is a mapping of keys, this holds {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    _read_instruction(tree, path)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(_sentence(item) for item in error.errors()[:5])}") from error


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML, every default written out; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differing_keys(first: RunConfig, second: RunConfig) -> list[str]:
    """Dotted keys whose values differ."""
    one, two = _flat(first.model_dump(mode="json")), _flat(second.model_dump(mode="json"))
    return [key for key in {**one, **two} if one.get(key) != two.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write key.subkey=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    if isinstance(value, str):
        value = _number(value)
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = _child(node, part, override)
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is a value and has no keys")


def _read_instruction(tree: dict[str, Any], path: Path) -> None:
    node: Any = tree
    for key in ("policy", "templates", "instruction"):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return
    if list(node) != ["file"]:
        raise ConfigError(f"{path}: policy.templates.instruction: write a text, or a mapping with the one key `file`")
    file = Path(str(node["file"]))
    prompts = tree.get("prompts")
    if not file.exists() and isinstance(prompts, dict):
        file = Path(str(prompts.get("train"))).parent / file.name
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: policy.templates.instruction.file: {node['file']} cannot be read: {error}"
        ) from error
    tree["policy"]["templates"]["instruction"] = text.replace("{}", "{prompt}")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise ConfigError(f"override {override!r}: {part!r} is no index of a list of {len(node)}")
        return node[int(part)]
    if isinstance(node, dict):
        return node[part]
    raise ConfigError(f"override {override!r}: {part!r} cannot be looked up in a value")


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-5 as text; a person means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _sentence(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    text = item["msg"].removeprefix("Value error, ")
    return f"{key}: {text}" if key else text
