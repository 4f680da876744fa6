"""Keys at the least and the most that makes sense: accepted there, and refused one step beyond."""

from __future__ import annotations

import pytest
from paths import ROOT

from recipe.config import ConfigError, load_config

SHAPES = ROOT / "deploy" / "runs" / "shapes.yaml"

LEAST = {
    "seed": (0, -1), "steps": (1, 0),
    "rollout.group_size": (2, 1), "rollout.groups_per_step": (1, 0), "rollout.staleness": (0, -1),
    "rollout.groups_in_flight": (1, 0), "rollout.retries": (0, -1),
    "held_out.every": (1, 0), "held_out.dev_members": (1, 0), "held_out.test_members": (1, 0),
    "held_out.samples": (0, -1), "checkpoint.every": (1, 0), "ray.object_store_mb": (80, 79),
    "ray.cpus": (1, 0), "ray.gpu_memory_gb": (0.1, 0), "ray.start_deadline_s": (0.1, 0), "ray.restarts": (0, -1),
    "metrics.port": (0, -1), "buffer.capacity": (1, 0), "buffer.deadline_s": (0.1, 0), "weights.bucket_mb": (1, 0),
    "semantic.max_tokens": (1, 0), "semantic.max_prompt_tokens": (1, 0), "semantic.temperature": (0, -0.1),
    "semantic.top_k": (0, -1), "semantic.max_num_seqs": (1, 0), "semantic.tensor_parallel": (1, 0),
    "semantic.kv_cache_gb": (0.1, 0), "semantic.gpu_memory_utilization": (0.1, 0), "semantic.replicas": (1, 0),
    "image.batch_size": (1, 0), "image.guidance_scale": (1, 0.9), "image.temperature": (0, -0.1),
    "image.decode_batch": (1, 0), "image.cpus": (0, -0.1), "image.gpus": (0, -0.1), "image.threads": (1, 0),
    "image.deadline_s": (0.1, 0),
    "learner.objective.clip_low": (0.1, 0), "learner.objective.clip_high": (0.1, 0),
    "learner.objective.beta": (0, -1), "learner.objective.std_eps": (1e-9, 0),
    "learner.objective.semantic_weight": (0, -0.1),
    "learner.objective.image_weight": (0, -0.1), "learner.optimizer.lr": (1e-9, 0),
    "learner.optimizer.warmup_steps": (0, -1), "learner.optimizer.eps": (1e-12, 0),
    "learner.optimizer.weight_decay": (0, -0.1), "learner.optimizer.betas": ("[0, 0]", "[-0.1, 0]"),
    "learner.ranks": (1, 0), "learner.cpus": (0, -0.1), "learner.gpus": (0, -0.1), "learner.threads": (1, 0),
    "learner.micro_batch_tokens": (1, 0), "learner.deadline_s": (0.1, 0), "learner.keep_checkpoints": (1, 0),
    "rewards.services.0.weight": (0, -0.1), "rewards.services.0.replicas": (1, 0),
    "rewards.services.0.threads": (1, 0), "rewards.services.0.batch_size": (1, 0),
    "rewards.services.0.retries": (0, -1), "rewards.start_deadline_s": (0.1, 0), "rewards.http_port": (1, 0),
}  # fmt: skip
MOST = {
    "metrics.port": (65535, 65536), "rewards.http_port": (65535, 65536), "weights.bucket_mb": (4096, 4097),
    "semantic.gpu_memory_utilization": (1, 1.1), "learner.objective.clip_low": (1, 1.1),
    "learner.optimizer.betas": ("[0.99, 0.99]", "[0.9, 1]"), "rewards.services.0.retries": (10, 11),
}  # fmt: skip


def test_the_bounds_themselves_are_accepted() -> None:
    load_config(SHAPES, [f"{key}={value}" for key, (value, _) in LEAST.items()])
    load_config(SHAPES, [f"{key}={value}" for key, (value, _) in MOST.items()])


BEYOND = [(key, wrong) for table in (LEAST, MOST) for key, (_, wrong) in table.items()]


@pytest.mark.parametrize(("key", "wrong"), BEYOND)
def test_what_lies_beyond_is_refused_by_name(key: str, wrong: float | str) -> None:
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
        load_config(SHAPES, [f"{key}={wrong}"])


@pytest.mark.parametrize("gpus", ["0 0 0", "1 1 1", "2 1 3"])
def test_pools_on_whole_gpus_or_on_none_may_broadcast(gpus: str) -> None:
    learner, image, semantic = gpus.split()
    pools = [f"learner.gpus={learner}", f"image.gpus={image}", f"semantic.gpus={semantic}"]
    assert load_config(SHAPES, ["weights.transport=nccl", *pools]).weights.transport == "nccl"
    if learner != "0":  # a pool that is off has no say
        load_config(SHAPES, ["weights.transport=nccl", *pools[:2], "semantic.enabled=false", "semantic.gpus=0"])


def test_the_buffer_holds_what_is_let_in_and_no_less() -> None:
    ahead = ["rollout.groups_per_step=5", "rollout.staleness=2"]
    assert load_config(SHAPES, [*ahead, "buffer.capacity=15"]).buffer.capacity == 15
    with pytest.raises(ConfigError, match="14 groups cannot hold the 15"):
        load_config(SHAPES, [*ahead, "buffer.capacity=14"])
