"""Memory of each pool by hand, on a Janus whose sizes are small enough to write out."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

import pytest
from paths import ROOT
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from recipe.config import RunConfig, load_config
from recipe.memory import CONTEXT, GIB, ModelSizes, Need, needs
from recipe.resources import Resources, check_fits, local_resources, needed

SHAPES = ROOT / "deploy" / "runs" / "shapes.yaml"
JANUS = JanusConfig(
    text_config=LlamaConfig(
        vocab_size=1000, hidden_size=64, num_hidden_layers=3, intermediate_size=96, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    ),
    vision_config=JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4, projection_dim=64,
        depth=2,
    ),
    vq_config=JanusVQVAEConfig(
        num_patches=4, num_embeddings=50, base_channels=32, channel_multiplier=[1, 2, 2], projection_dim=64,
        image_token_embed_dim=64,
    ),
    tie_word_embeddings=False,
)  # fmt: skip
TRAINED, TOTAL = 10_000_000, 30_000_000


def config(*overrides: str) -> RunConfig:
    return load_config(SHAPES, overrides)


def sizes(width: int, **changes: int) -> ModelSizes:
    counts: dict[str, Any] = {"total": TOTAL, "language": 20_000_000, "trained": TRAINED, "slot": 1000} | changes
    return ModelSizes(width=width, janus=JANUS, **counts)


def pool(name: str, given: RunConfig, of: ModelSizes, rewards: dict[str, int | None] | None = None) -> Need:
    (found,) = (need for need in needs(given, of, rewards or {}) if need.pool == name)
    return found


def test_sizes_of_a_janus() -> None:
    found = ModelSizes.of(JANUS, config("policy.dtype=bfloat16"))
    attention = 2 * 64 * 64 + 2 * 64 * 32
    language = 2 * 1000 * 64 + 3 * (attention + 3 * 64 * 96 + 2 * 64) + 64
    assert found.language == found.trained == language and found.total > language
    assert found.slot == 2 * 3 * 2 * 16 * 2 and found.width == 2  # keys and values, layers, heads, head size, bytes


def test_a_semantic_pool_on_a_gpu_takes_its_share_of_the_card() -> None:
    given = config(
        "semantic.gpus=2", "semantic.tensor_parallel=2", "semantic.gpu_memory_utilization=0.5",
        "ray.gpu_memory_gb=10", "semantic.max_tokens=60", "semantic.max_prompt_tokens=40", "semantic.replicas=3",
    )  # fmt: skip
    need = pool("semantic", given, sizes(2))
    cache = (0.5 * 10 - 1.5) * 2 * GIB - 20_000_000 * 2
    assert need.parts == {"weights": 40_000_000, "KV cache": pytest.approx(cache), "work": 3 * GIB}
    assert f", KV cache for {int(cache / (100 * 1000))} whole CoTs at a time, max_num_seqs 64" == need.note
    assert (need.processes, need.gpus) == (3, 2) and need.total == pytest.approx(10 * GIB + CONTEXT)


def test_a_semantic_pool_on_cpus_has_the_cache_it_is_given() -> None:
    given = config("semantic.kv_cache_gb=0.5", "semantic.max_tokens=60", "semantic.max_prompt_tokens=40")
    need = pool("semantic", given, sizes(4))
    assert need.parts == {"weights": 80_000_000, "KV cache": 0.5 * GIB} and need.total == 80_000_000 + 0.5 * GIB
    assert f"for {2**29 // 100_000} whole CoTs" in need.note
    beside_gpus = pool("semantic", given.model_copy(update={"ray": config("ray.gpu_memory_gb=10").ray}), sizes(4))
    assert beside_gpus.parts == need.parts
    unknown_card = pool(
        "semantic", given.model_copy(update={"semantic": config("semantic.gpus=1").semantic}), sizes(4)
    )
    assert unknown_card.parts == {"weights": 80_000_000, "KV cache": 0.25 * GIB, "work": 1.5 * GIB}
    assert [need.pool for need in needs(config("semantic.enabled=false"), sizes(4), {})] == ["image", "learner"]


def test_an_image_pool() -> None:
    asked = ["image.batch_size=8", "semantic.max_tokens=60", "semantic.max_prompt_tokens=40", "image.gpus=1"]
    need = pool("image", config("image.decode_batch=3", "policy.dtype=bfloat16", *asked), sizes(2))
    # 16 image tokens and 100 before them, two rows a picture; pictures of 16 x 16 pixels, 32 channels wide.
    assert need.parts == {
        "weights": TOTAL * 2,
        "KV cache up to": 16 * 116 * 1000,
        "decoder about": 4 * 3 * 16 * 16 * 32 * 2,
    }
    unguided = pool("image", config("image.decode_batch=30", "image.guidance_scale=1", *asked), sizes(4))
    assert unguided.parts["KV cache up to"] == 8 * 116 * 1000
    assert unguided.parts["decoder about"] == 4 * 8 * 16 * 16 * 32 * 4  # no more pictures than are drawn


@pytest.mark.parametrize(
    ("stage", "ranks", "width", "gradients", "optimizer"),
    [
        (0, 1, 4, 4, 12),  # float32: gradients, and Adam's two moments with a copy of the weights
        (1, 4, 4, 4, 3),
        (0, 4, 2, 4 + 2, 4),  # bfloat16: never less than stage 1; sums of gradients in float32
        (1, 4, 2, 4 + 2, 4),
        (2, 4, 2, 1 + 2, 4),
    ],
)
def test_a_learner_by_stage(stage: int, ranks: int, width: int, gradients: int, optimizer: int) -> None:
    dtype = {2: "bfloat16", 4: "float32"}[width]
    given = config(f"learner.zero_stage={stage}", f"learner.ranks={ranks}", f"policy.dtype={dtype}")
    parts = pool("learner", given, sizes(width)).parts
    assert parts["weights"] == TOTAL * width and parts["reference"] == TRAINED * width
    assert parts["gradients"] == TRAINED * gradients and parts["optimizer"] == TRAINED * optimizer
    none = pool("learner", config("learner.objective.beta=0"), sizes(4)).parts
    assert none["reference"] == 0


def test_a_learner_under_stage_three() -> None:
    given = ["learner.ranks=4", "policy.dtype=bfloat16"]
    shared = pool("learner", config("learner.zero_stage=3", *given), sizes(2)).parts
    second = pool("learner", config("learner.zero_stage=2", *given), sizes(2)).parts
    heads = 64 * (1000 + 50) * 2
    assert shared["weights"] == shared["reference"] == TOTAL * 2 / 4 + heads
    assert (shared["gradients"], shared["optimizer"]) == (second["gradients"], second["optimizer"])
    assert shared["activations"] - second["activations"] == TOTAL * 2  # gathered while they compute
    large = sizes(2, total=7_000_000_000, trained=6_000_000_000)
    third = pool("learner", config("learner.zero_stage=3", *given), large).parts
    assert third["activations"] - second["activations"] == 2e9  # as many as DeepSpeed lets live
    assert third["gradients"] == 6e9 * 4 / 4 + 5e8 * 2  # as many as its bucket holds
    first = pool("learner", config("learner.zero_stage=1", *given), large).parts
    assert first["gradients"] == 6e9 * (4 + 2)


@pytest.mark.parametrize("width", [2, 4])
def test_layers_that_are_recomputed_keep_their_input_alone(width: int) -> None:
    dtype = {2: "bfloat16", 4: "float32"}[width]
    given = config("learner.gradient_checkpointing=true", f"policy.dtype={dtype}", "learner.micro_batch_tokens=1000")
    deeper = copy.deepcopy(JANUS)
    deeper.text_config.num_hidden_layers += 5
    fewer, more = (replace(sizes(width), janus=janus) for janus in (JANUS, deeper))
    kept = [pool("learner", given, one).parts["activations"] for one in (fewer, more)]
    assert kept[1] - kept[0] == 5 * 1000 * 64 * width


def test_an_adapter_trains_instead_of_the_weights() -> None:
    given = config("learner.lora={rank: 5, targets: [q_proj, k_proj, v_proj, o_proj, gate_proj, down_proj]}")
    adapter = 5 * 3 * ((64 + 64) + (64 + 32) + (64 + 32) + (64 + 64) + (64 + 96) + (96 + 64))
    parts = pool("learner", given, sizes(4)).parts
    assert parts["weights"] == (TOTAL + adapter) * 4 and parts["reference"] == 0
    assert parts["gradients"] == adapter * 4 and parts["optimizer"] == adapter * 12


def test_rewards_whose_size_is_known() -> None:
    given = config("rewards.services.0.options={dtype: bfloat16}", "rewards.services.0.replicas=2")
    need = pool("reward detector", given, sizes(4), {"detector": 1_000_000, "strict": None})
    assert need.parts == {"weights": 2_000_000, "activations about": 64 * 32 * 2**20} and need.processes == 2
    assert [need.pool for need in needs(given, sizes(4), {"strict": None})] == ["semantic", "image", "learner"]


def test_what_a_person_reads() -> None:
    need = Need("learner", 2, 0.5, {"weights": 3 * GIB, "work": 1.5 * GIB}, ", and so on")
    assert need.total == 5 * GIB
    assert need.fits(10) and not need.fits(9.9) and need.fits(None)
    assert need.line(10) == "2 x 0.5 GPU: 5.00 of 5.0 GiB each (weights 3.00, work 1.50), and so on"
    assert need.line(9) == "2 x 0.5 GPU: 5.00 of 4.5 GiB each (weights 3.00, work 1.50), and so on; does not fit"
    assert need.line(None) == "2 x 0.5 GPU: 5.00 GiB each (weights 3.00, work 1.50), and so on"


def test_what_a_run_reserves() -> None:
    given = config(
        "image.replicas=3", "image.gpus=0.5", "semantic.replicas=2", "semantic.gpus=1", "learner.ranks=4",
        "learner.gpus=2", "learner.resources={fast: 0.25}", "rewards.services.0.replicas=2",
    )  # fmt: skip
    table = needed(given)
    assert table["image"] == Resources(0.75, 1.5) and table["semantic"] == Resources(0.5, 2)
    assert table["learner"] == Resources(2, 8, {"fast": 1}) and table["reward detector"] == Resources(0.2, 0)
    assert str(table["learner"]) == "2 CPUs and 8 GPUs, 1 fast"
    cpus = sum(one.cpus for one in table.values())
    check_fits(given, Resources(cpus, 11.5, {"fast": 1}))
    assert "semantic" not in needed(config("semantic.enabled=false"))
    for lacking, kind in ((Resources(cpus, 11.4, {"fast": 1}), "GPUs"), (Resources(cpus, 11.5), "fast")):
        with pytest.raises(RuntimeError, match=f"{kind} together.*the largest is learner"):
            check_fits(given, lacking)


def test_what_a_local_cluster_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs are counted as the kernel's driver names their devices."""
    devices = ["nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm", "nvidia-caps", "tty", "tty64", "dri-nv1234567"]
    monkeypatch.setattr("os.listdir", {"/dev": devices}.__getitem__)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert local_resources(config("ray.cpus=3")) == Resources(3, 2)
    found = local_resources(config())
    assert found is not None and found.cpus == os.cpu_count()
    assert local_resources(config("ray.address=head:6379")) is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert local_resources(config()) is None
