"""What `bicot check` says of memory: the shipped recipes fit the GPUs they name, and what cannot fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paths import ROOT
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from benchmarks.tensor_peak import TensorPeak
from policy.janus import trained_parameters
from policy.scoring import Scorer, ScoreRows, SegmentRows
from policy.tiny import tiny_janus, tiny_tokenizer
from policy.tokens import TokenLayout
from recipe.config import RunConfig, load_config
from recipe.memory import GIB, LOGITS, ModelSizes, Need, needs

RUNS = ROOT / "deploy" / "runs"
REWARDS = {"hps": 986_109_440, "detector": 172_249_090, "vqa": 394_225_722, "orm": 8_030_348_832}
"""Parameters of ViT-H-14 CLIP, Grounding DINO Swin-T, GIT-large and LLaVA-OneVision-7B."""


@pytest.fixture(autouse=True)
def _instruction(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file that a recipe takes its wording from."""
    (tmp_path / "data" / "t2i_r1").mkdir(parents=True)
    (tmp_path / "data" / "t2i_r1" / "reasoning_prompt.txt").write_text('Plan "{}"', encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def janus_pro(size: str) -> JanusConfig:
    """Janus-Pro as its authors configured it: 24x24 image tokens of 16,384 codes, 102,400 text tokens."""
    hidden, layers, intermediate = {"7b": (4096, 30, 11008), "1b": (2048, 24, 5632)}[size]
    return JanusConfig(
        text_config=LlamaConfig(
            vocab_size=102_400, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=intermediate,
            num_attention_heads=hidden // 128, num_key_value_heads=hidden // 128, max_position_embeddings=16_384,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=384, patch_size=16,
            projection_dim=hidden,
        ),
        vq_config=JanusVQVAEConfig(num_patches=24, projection_dim=hidden, image_token_embed_dim=hidden),
        tie_word_embeddings=False,
    )  # fmt: skip


def recipe(name: str, *overrides: str) -> RunConfig:
    return load_config(RUNS / f"{name}.yaml", overrides)


def pools(config: RunConfig, size: str) -> dict[str, Need]:
    return {need.pool: need for need in needs(config, ModelSizes.of(janus_pro(size), config), REWARDS)}


def test_parameters_are_counted_from_the_config() -> None:
    sizes = ModelSizes.of(janus_pro("7b"), recipe("t2i_r1_7b"))
    assert sizes.total == pytest.approx(7.42e9, rel=0.01)
    assert sizes.trained == sizes.language == pytest.approx(6.91e9, rel=0.01)
    assert sizes.slot == 2 * 30 * 4096 * 2


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("t2i_r1_7b", "7b"),
        ("t2i_r1_code", "7b"),
        ("janus_pro_1b_one_gpu", "1b"),
        ("janus_pro_7b_lora_one_gpu", "7b"),
    ],
)
def test_the_recipes_fit_the_gpus_they_name(name: str, size: str) -> None:
    config = recipe(name)
    assert config.ray.gpu_memory_gb
    for need in pools(config, size).values():
        assert need.fits(config.ray.gpu_memory_gb), f"{need.pool}: {need.line(config.ray.gpu_memory_gb)}"
        assert "does not fit" not in need.line(config.ray.gpu_memory_gb)


def test_what_cannot_fit_is_refused() -> None:
    on_small_gpus = pools(recipe("t2i_r1_7b", "ray.gpu_memory_gb=24"), "7b")
    assert not on_small_gpus["learner"].fits(24) and "does not fit" in on_small_gpus["learner"].line(24)
    full = pools(recipe("janus_pro_7b_lora_one_gpu", "learner.lora=null"), "7b")
    assert not full["learner"].fits(79), "all of 7B does not train on a third of one card"
    greedy = pools(recipe("janus_pro_1b_one_gpu", "semantic.gpu_memory_utilization=0.9"), "1b")
    assert not greedy["semantic"].fits(79), "vLLM would take more than its share of the card"


def test_a_pool_on_cpus_is_told_and_not_refused() -> None:
    need = Need("image", 2, 0.0, {"weights": 3 * GIB})
    assert need.fits(1.0) and need.line(1.0) == "2 on CPU: 3.00 GiB each (weights 3.00)"


def test_a_cpus_cache_is_float32_unless_compiled() -> None:
    """As the sampler makes it."""

    def cache(*overrides: str) -> float:
        return pools(recipe("shapes", *overrides), "1b")["image"].parts["KV cache up to"]

    plain = cache("policy.dtype=bfloat16")
    assert plain == cache("policy.dtype=float32") == 2 * cache("policy.dtype=bfloat16", "image.compile=true")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("checkpointing", ["false", "selective", "true"])
@pytest.mark.parametrize("lora", [False, True])
def test_activations_are_those_that_a_model_keeps(dtype: str, checkpointing: str, lora: bool) -> None:
    """The estimate beside the tensors of a pass of the scorer, whose chunks of logits are next to nothing."""
    tokenizer = tiny_tokenizer()
    model = tiny_janus(tokenizer, hidden=96, layers=6, heads=4, intermediate=256, image_size=192)
    model.to(getattr(torch, dtype)).eval().requires_grad_(False)
    overrides = [f"policy.dtype={dtype}", f"learner.gradient_checkpointing={checkpointing}"]
    if lora:
        overrides.append("learner.lora={rank: 4}")
    config, layout = recipe("shapes", *overrides), TokenLayout.of(tokenizer, model.config)
    if config.learner.lora:
        from learner.adapter import TrainedAdapter

        trained = TrainedAdapter(model, config.learner.lora).parameters()
    else:
        trained = trained_parameters(model, "language_model")
    for parameter in trained.values():
        parameter.requires_grad_(True)
        parameter.grad = torch.zeros_like(parameter)
    prompt = torch.tensor([layout.bos, *range(8, 30), layout.boi])
    images = [torch.randint(layout.image_vocab, (layout.image_tokens,)) for _ in range(2)]
    rows = ScoreRows(image=SegmentRows([prompt] * 2, images, 1.0, 5.0))
    tokens = 4 * (layout.image_tokens - 1) + 2 * len(prompt) - 1
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"micro_batch_tokens": tokens})})
    with TensorPeak() as tensors:
        scores = Scorer(model, layout, 2**14, config.learner.recompute)(rows, "guided").image
        assert scores is not None
        tensors.peak = tensors.live  # of the backward pass, which begins with all that is kept
        scores.logprobs.sum().backward()
    sizes = ModelSizes.of(model.config, config)
    (need,) = (need for need in needs(config, sizes, {}) if need.pool == "learner")
    assert need.parts["activations"] - LOGITS == pytest.approx(tensors.peak, rel=0.1)
