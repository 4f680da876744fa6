"""Settings of the reward services and of the ensemble."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

Scoring = Literal["paper", "t2i_r1_code"]
"""Whose rules turn what the models see into scores; docs/departures.md lists the differences."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RewardConfig(_Config):
    """One reward model and the service that runs it."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$", max_length=40, description="names the reward in metrics and reports"
    )
    target: str = Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="import path of a rewards.base.Reward, 'package.module:Class'; any module on the Python path",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")
    weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="share in the advantage; 0 is scored and reported only"
    )
    replicas: int = Field(1, ge=1, description="processes that run this reward, each with the resources below")
    cpus: float = Field(1.0, ge=0, description="CPU cores that Ray reserves for a replica; fractions too")
    gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for a replica; fractions share a GPU")
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="custom Ray resources of a replica, to place it on nodes that offer them"
    )
    threads: int = Field(1, ge=1, description="threads a replica computes with (OpenMP, torch)")
    batch_size: int = Field(32, ge=1, description="most pictures in one call of the model, from one group or several")
    batch_wait_s: float = Field(
        0.01, ge=0, le=10, description="seconds that an incomplete batch waits for more pictures"
    )
    deadline_s: float = Field(
        60.0,
        gt=0,
        description="seconds a group may wait for its scores, retries included; then the reward is missing",
    )
    retries: int = Field(2, ge=0, le=10, description="further attempts after a failed one, within the deadline")


class RewardsConfig(_Config):
    """All rewards of a run; each is a service of its own."""

    services: tuple[RewardConfig, ...] = Field(min_length=1, description="the rewards of the ensemble")
    scoring: Scoring = Field(
        "paper",
        description="the paper's scoring rules, or those of T2I-R1's released code; for rewards that take `scoring`",
    )
    start_deadline_s: float = Field(300.0, gt=0, description="seconds within which every replica must be ready")
    http: bool = Field(False, description="serve each reward at http://http_host:http_port/rewards/RUN/NAME too")
    http_host: str = Field("127.0.0.1", description="address the HTTP proxy listens on; it asks for no password")
    http_port: int = Field(8008, ge=1, le=65535, description="port the HTTP proxy listens on")

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
