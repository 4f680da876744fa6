"""`bicot check`: open all paths of a run, estimate its memory, start nothing. `bicot train` runs the same checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from policy.prompts import PromptFileError, load_prompts, rows_by_task
from recipe.config import RunConfig
from recipe.errors import RunError
from recipe.resources import check_fits, local_resources, needed
from recipe.run_folder import RunFolder
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
    """Check everything that a run needs. Loads no weights and starts no process.

    `memory` false skips the memory estimate, if the run uses no GPU.
    """
    findings: list[Finding] = []

    def look(subject: str, action: Callable[[], str]) -> None:
        try:
            findings.append(Finding(subject, action()))
        except (RunError, PromptFileError, RewardConfigError, RedisUnavailable, ValueError) as error:
            findings.append(Finding(subject, str(error), ok=False))

    look("folder", lambda: _folder(config))
    for subject, path in prompt_files(config):
        exclude = config.prompts.exclude if subject == "prompts.train" else ()
        look(subject, lambda path=path, exclude=exclude: _prompts(path, exclude))  # type: ignore[misc]
    for service in config.rewards.services:
        look(f"reward {service.name}", lambda service=service: _reward(service, config))  # type: ignore[misc]
    look("resources", lambda: _resources(config))
    if config.buffer.url is not None:
        look("buffer", lambda: _redis(config))
    if config.metrics.wandb:
        look("metrics.wandb", _wandb)
    look("policy", lambda: _policy(config))
    if findings[-1].ok and (memory or uses_gpus(config)):
        wrong = {finding.subject for finding in findings if not finding.ok}
        rewards = [service for service in config.rewards.services if f"reward {service.name}" not in wrong]
        findings += _memory(config, rewards)
    return findings


def require(config: RunConfig) -> None:
    """
    Raises:
        RunError: one sentence for each problem.
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


def _folder(config: RunConfig) -> str:
    RunFolder(config.folder).check()
    return config.folder


def _prompts(path: str, exclude: Sequence[str]) -> str:
    records = load_prompts(path, exclude)
    rows = ", ".join(f"{task} {count:,}" for task, count in rows_by_task(records).items())
    left_out = (
        f", {len(load_prompts(path)) - len(records):,} left out that stand in prompts.exclude" if exclude else ""
    )
    return f"{path}: {len(records):,} prompts ({rows}){left_out}"


def _reward(service: RewardConfig, config: RunConfig) -> str:
    check_reward(service, config.rewards.scoring)
    return f"{service.target}, weight {service.weight:g}, {service.replicas} replica(s)"


def _resources(config: RunConfig) -> str:
    table = ", ".join(f"{name} {pool}" for name, pool in needed(config).items())
    cluster = local_resources(config)
    if cluster is None:
        return f"{table}; compared with the cluster at the start"
    check_fits(config, cluster, "this machine")
    return f"{table}; this machine has {cluster}"


def _redis(config: RunConfig) -> str:
    url = config.buffer.address()
    assert url
    check_redis(url, REDIS_DEADLINE_S)
    return "Redis answers"


def require_wandb() -> None:
    """
    Raises:
        RunError: W&B was asked for and is not installed.
    """
    if find_spec("wandb") is None:
        raise RunError("metrics.wandb: W&B is not installed here: pip install wandb, or set metrics.wandb to null")


def _wandb() -> str:
    require_wandb()
    return "W&B is installed"


def _policy(config: RunConfig) -> str:
    from policy.janus import check_checkpoint

    check_checkpoint(config.policy.checkpoint, config.policy.templates)
    return f"{config.policy.checkpoint}, {config.policy.dtype}, {config.policy.trained} trains"


def _memory(config: RunConfig, rewards: Sequence[RewardConfig]) -> list[Finding]:
    """The memory that each pool and reward needs; not ok if it exceeds the pool's GPUs, or its share of one."""
    from policy.janus import check_checkpoint
    from recipe.memory import (  # counts on a model without weights; the model's classes take seconds to import
        ModelSizes,
        needs,
    )

    gpu_gb = config.ray.gpu_memory_gb or _gpu_memory_gb()
    counted = {one.name: check_reward(one).parameters(one.options) for one in rewards}
    sizes = ModelSizes.of(check_checkpoint(config.policy.checkpoint), config)
    model = f"{sizes.total / 1e6:,.1f} M parameters, {sizes.language / 1e6:,.1f} M of them the language model's"
    pools = needs(config, sizes, counted)
    lines = [Finding(f"memory of {pool.pool}", pool.line(gpu_gb), pool.fits(gpu_gb)) for pool in pools]
    return [Finding("model", model), *lines]


def uses_gpus(config: RunConfig) -> bool:
    """Whether any pool reserves a GPU or a share of one."""
    return any(pool.gpus for pool in needed(config).values())


def _gpu_memory_gb() -> float | None:
    """GiB of this machine's first GPU; None where there is none."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
