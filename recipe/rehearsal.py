"""`bicot rehearse`: a run config on this machine's CPU, with tiny random models instead of its checkpoints.

Everything else is the real run's: checkpoint layouts, templates, data, every reward and its service, guidance,
objective, ZeRO stage, LoRA. So many faults show here, before models are loaded on the cluster.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from policy.prompts import PromptFileError, load_prompts, spread
from policy.tiny import write_tiny_janus
from recipe.config import RunConfig
from recipe.errors import RunError
from rewards.models.tiny import write_tiny_rewards

logger = logging.getLogger(__name__)

STEPS = 3
GROUP_SIZE = 2
RANKS = 2
COT_TOKENS = 12
_TINY_REWARDS = {
    "rewards.models.hps:Hps": "hps",
    "rewards.models.grounding_dino:GroundingDino": "grounding_dino",
    "rewards.models.git_vqa:GitVqa": "git_vqa",
    "rewards.models.orm:Orm": "orm",
}


def rehearsal(config: RunConfig, folder: Path, rows: int, layout: str) -> RunConfig:
    """Write tiny checkpoints and a prompt file of `rows` rows into `folder`; the config of a few steps with them.

    `layout` is the layout of the Janus checkpoint, "hf" or "original". The user's own rewards stay unchanged.

    Raises:
        RunError: the prompt file cannot be used.
    """
    try:
        records = load_prompts(config.prompts.train, config.prompts.exclude)
    except PromptFileError as error:
        raise RunError(str(error)) from error
    chosen = spread(records, rows)
    checkpoints = folder / "checkpoints"
    janus = write_tiny_janus(checkpoints / "janus", layout="original" if layout == "original" else "hf")
    rewards = write_tiny_rewards(checkpoints)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(f"{record.model_dump_json(exclude_defaults=True)}\n" for record in chosen), "utf-8")

    tree = config.model_dump(mode="json")
    groups = -(-len(chosen) // STEPS)
    _update(tree, {
        "folder": str(folder / "run"),
        "steps": STEPS,
        "policy": {"checkpoint": str(janus)},
        "prompts": {"train": str(prompts), "exclude": []},
        "rollout": {"group_size": GROUP_SIZE, "groups_per_step": groups},
        "semantic": {"max_tokens": COT_TOKENS, "max_prompt_tokens": 900, "max_num_seqs": 16, "kv_cache_gb": 0.25,
                     "tensor_parallel": 1, **_CPU},
        "image": {"batch_size": 16, **_CPU},
        "learner": {"ranks": min(config.learner.ranks, RANKS), "gpus": 0, "cpus": 0.1, "threads": 1},
        "buffer": {"url": None, "capacity": 2 * (config.rollout.staleness + 1) * groups},
        "weights": {"bucket_mb": 8},
        "checkpoint": {"every": STEPS},
        "held_out": None,
        "ray": {"address": None, "gpu_memory_gb": None},
    })  # fmt: skip
    for service in tree["rewards"]["services"]:
        service |= {"replicas": 1, "cpus": 0.1, "gpus": 0, "batch_size": 8}
        if name := _TINY_REWARDS.get(service["target"]):
            service["options"] |= rewards[name]
    return RunConfig.model_validate(tree)


_CPU = {"replicas": 1, "cpus": 0.1, "gpus": 0, "threads": 1}


def _update(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _update(tree[key], value)
        else:
            tree[key] = value
