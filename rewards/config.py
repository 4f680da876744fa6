"""Settings of the reward services and of the ensemble."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from policy.settings import Cores, Gpus, Pictures, Processes, Seconds, Settings, Threads, Tries

Scoring = Literal["paper", "t2i_r1_code"]
"""Whose rules turn the models' findings into scores; docs/departures.md lists the differences."""


class RewardConfig(Settings):
    """One reward model and the service that runs it."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$",
        max_length=40,
        description="Names the reward in metrics, reports and overrides: a to z, 0 to 9 and _.",
    )
    target: str = Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="Import path of a rewards.base.Reward, 'package.module:Class'; any module on the Python path.",
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the class; docs/rewards.md lists them.")
    weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the scores in the sum behind the advantages; a reward of weight 0 is only reported.",
    )
    replicas: Processes = Field(1, ge=1, description="Processes of this reward, each with the resources below.")
    cpus: Cores = Field(1.0, ge=0, description="CPU cores that Ray reserves for a replica; fractions share a core.")
    gpus: Gpus = Field(
        0.0, ge=0, description="GPUs that Ray reserves for a replica; fractions share a GPU, 0 is on CPU."
    )
    resources: dict[str, PositiveFloat] = Field(
        {}, description="Custom Ray resources of a replica; they place it on nodes that offer them."
    )
    threads: Threads = Field(1, ge=1, description="Compute threads of a replica (OpenMP, torch).")
    batch_size: Pictures = Field(
        32, ge=1, description="Most pictures in one call of the model; they may come from several groups."
    )
    batch_wait_s: Seconds = Field(
        0.01, ge=0, le=10, description="Seconds that an incomplete batch waits for more pictures."
    )
    deadline_s: Seconds = Field(
        60.0,
        gt=0,
        description="Seconds that a group waits for its scores, retries included; then the reward is missing.",
    )
    retries: Tries = Field(2, ge=0, le=10, description="Further tries after a failed one, within the deadline.")


class RewardsConfig(Settings):
    """All rewards of a run; each is a service of its own."""

    services: tuple[RewardConfig, ...] = Field(
        min_length=1, description="The rewards of the ensemble: a list, or a mapping by name."
    )
    scoring: Scoring = Field(
        "paper",
        description="Scoring rules: the paper's, or T2I-R1's code's; for rewards that take the argument `scoring`.",
    )
    start_deadline_s: Seconds = Field(300.0, gt=0, description="Seconds within which every replica must be ready.")
    http: bool = Field(False, description="Also serve each reward at http://http_host:http_port/rewards/RUN/NAME.")
    http_host: str = Field(
        "127.0.0.1", description="Address that the HTTP proxy listens on; the proxy asks for no password."
    )
    http_port: int = Field(8008, ge=1, le=65535, description="Port that the HTTP proxy listens on.")

    @model_validator(mode="after")
    def _names_and_weights(self) -> Self:
        names = [service.name for service in self.services]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two services share the name {twice[0]!r}")
        if not any(service.weight > 0 for service in self.services):
            raise ValueError("every service has weight 0; at least one reward must count")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weight by name, weight 0 included."""
        return {service.name: service.weight for service in self.services}
