"""`bicot check`: open all paths of a run, estimate its memory, start nothing. `bicot train` checks the same first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config import RunConfig
from cluster.errors import RunError
from cluster.session import check_fits, local_resources, needed
from cluster.trackers import require_wandb
from policy.prompts import PromptFileError, load_prompts, rows_by_task
from rewards.base import RewardConfigError, check_reward
from rewards.config import RewardConfig
from transport.errors import RedisUnavailable
from transport.redis_server import check_redis

REDIS_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One checked thing: what was found, or (`ok` false) what is wrong with it."""

    subject: str
    text: str
    ok: bool = True


def check(config: RunConfig, memory: bool = True) -> list[Finding]:
    """Look at everything a run needs, and estimate its `memory`. Loads no weights and starts no process."""
    findings: list[Finding] = []

    def look(subject: str, action: Callable[[], str]) -> None:
        try:
            findings.append(Finding(subject, action()))
        except (RunError, PromptFileError, RewardConfigError, RedisUnavailable, ValueError) as error:
            findings.append(Finding(subject, str(error), ok=False))

    for subject, path in prompt_files(config):
        exclude = config.prompts.exclude if subject == "prompts.train" else ()
        look(subject, lambda path=path, exclude=exclude: _prompts(path, exclude))  # type: ignore[misc]
    for service in config.rewards.services:
        look(f"reward {service.name}", lambda service=service: _reward(service))  # type: ignore[misc]
    look("resources", lambda: _resources(config))
    if config.buffer.url:
        look("buffer", lambda: _redis(config))
    if config.metrics.wandb:
        look("metrics.wandb", _wandb)
    look("policy", lambda: _policy(config, memory))
    return findings


def require(config: RunConfig) -> None:
    """
    Raises:
        RunError: one sentence for each thing that is wrong.
    """
    wrong = [finding.text for finding in check(config, memory=False) if not finding.ok]
    if wrong:
        raise RunError("\n".join(wrong))


def prompt_files(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every prompt file of a run with the key that names it."""
    yield "prompts.train", config.prompts.train
    if config.held_out and config.held_out.dev:
        yield "held_out.dev", config.held_out.dev
    if config.held_out and config.held_out.test:
        yield "held_out.test", config.held_out.test


def _prompts(path: str, exclude: Sequence[str]) -> str:
    records = load_prompts(path, exclude)
    rows = ", ".join(f"{task} {count:,}" for task, count in rows_by_task(records).items())
    left_out = (
        f", {len(load_prompts(path)) - len(records):,} left out that stand in prompts.exclude" if exclude else ""
    )
    return f"{path}: {len(records):,} prompts ({rows}){left_out}"


def _reward(service: RewardConfig) -> str:
    check_reward(service)
    return f"{service.target}, weight {service.weight:g}, {service.replicas} replica(s)"


def _resources(config: RunConfig) -> str:
    table = ", ".join(f"{name} {pool}" for name, pool in needed(config).items())
    cluster = local_resources(config)
    if cluster is None:
        return f"{table}; compared with the cluster at the start"
    check_fits(config, cluster)
    return f"{table}; this machine has {cluster}"


def _redis(config: RunConfig) -> str:
    assert config.buffer.url
    check_redis(config.buffer.url, REDIS_DEADLINE_S)
    return "Redis answers"


def _wandb() -> str:
    require_wandb()
    return "W&B is installed"


def _policy(config: RunConfig, memory: bool) -> str:
    from policy.janus import check_checkpoint

    janus = check_checkpoint(config.policy.checkpoint)
    if not memory:
        return config.policy.checkpoint
    from cluster.memory import estimate  # builds the model without its weights, which takes seconds to import

    lines = [f"{Path(config.policy.checkpoint)}: memory of one process, estimated:"]
    return "\n".join([*lines, *(f"  {row}" for row in estimate(config, janus))])
