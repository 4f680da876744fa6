"""Estimates, from configs alone, the memory that the processes of each pool need, and whether their GPUs have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import JanusConfig, JanusForConditionalGeneration

from actors.cached_llama import cache_dtype
from learner.config import LoraConfig
from policy.janus import is_trained
from recipe.config import RunConfig

GIB = 2**30
_WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
CONTEXT = 0.5 * GIB
"""Memory of CUDA itself in a process, libraries included."""
VLLM_WORK = 1.5 * GIB
"""vLLM's activations and graphs; vLLM reserves them before it gives the rest to the KV cache."""
LOGITS = 24 * 2**23
"""The learner's memory for one chunk of logits."""
_BUCKET, _LIVE = 500_000_000, 1_000_000_000
"""Elements of DeepSpeed's gradient bucket, and of the weights that ZeRO 3 keeps gathered at a time."""


@dataclass(frozen=True, slots=True)
class Need:
    """The memory of one process of a pool: bytes by part. `gpus` are the process's GPUs, 0 on a CPU."""

    pool: str
    processes: int
    gpus: float
    parts: Mapping[str, float]
    note: str = ""

    @property
    def total(self) -> float:
        """Bytes of all parts, plus CUDA's own memory if the process has a GPU."""
        return sum(self.parts.values()) + (CONTEXT if self.gpus else 0)

    def fits(self, gpu_gb: float | None) -> bool:
        """Whether the memory fits the process's GPUs, or its share of one; unknown GPUs count as large enough."""
        return not self.gpus or gpu_gb is None or self.total <= self.gpus * gpu_gb * GIB

    def line(self, gpu_gb: float | None) -> str:
        """A line for a person, in GiB."""
        parts = ", ".join(f"{name} {size / GIB:,.2f}" for name, size in self.parts.items())
        where = f"{self.processes} x {self.gpus:g} GPU" if self.gpus else f"{self.processes} on CPU"
        share = f" of {self.gpus * gpu_gb:,.1f}" if self.gpus and gpu_gb else ""
        verdict = "" if self.fits(gpu_gb) else "; does not fit"
        return f"{where}: {self.total / GIB:,.2f}{share} GiB each ({parts}){self.note}{verdict}"


def needs(config: RunConfig, sizes: ModelSizes, rewards: Mapping[str, int | None]) -> list[Need]:
    """The needs of each pool's processes. `rewards` has the parameters of each reward's model, None if unknown."""
    pools = [_semantic(config, sizes)] if config.semantic.enabled else []
    pools += [_image(config, sizes), _learner(config, sizes)]
    for service in config.rewards.services:
        if count := rewards.get(service.name):
            width = _WIDTH[str(service.options.get("dtype", "float32"))]
            parts = {"weights": count * width, "activations about": service.batch_size * 32 * 2**20}
            pools.append(Need(f"reward {service.name}", service.replicas, service.gpus, parts))
    return pools


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a Janus: parameters in all, of the language model, and those that train; bytes of a KV cache slot."""

    total: int
    language: int
    trained: int
    slot: int
    width: int
    janus: JanusConfig

    @classmethod
    def of(cls, janus: JanusConfig, config: RunConfig) -> ModelSizes:
        """Counted on a model without storage."""
        with torch.device("meta"):
            model = JanusForConditionalGeneration(janus)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        width, text = _WIDTH[config.policy.dtype], janus.text_config
        head = text.hidden_size // text.num_attention_heads
        return cls(
            total=sum(sizes.values()),
            language=sum(size for name, size in sizes.items() if is_trained(name, "language_model")),
            trained=sum(size for name, size in sizes.items() if is_trained(name, config.policy.trained)),
            slot=2 * text.num_hidden_layers * text.num_key_value_heads * head * width,
            width=width,
            janus=janus,
        )


def _semantic(config: RunConfig, sizes: ModelSizes) -> Need:
    """vLLM takes its configured share; the part that the weights leave free is KV cache."""
    pool, weights = config.semantic, sizes.language * sizes.width
    length = pool.max_prompt_tokens + pool.max_tokens
    cache = pool.kv_cache_gb * GIB
    if pool.gpus and config.ray.gpu_memory_gb:
        taken = pool.gpu_memory_utilization * config.ray.gpu_memory_gb * GIB * pool.tensor_parallel
        cache = taken - weights - VLLM_WORK * pool.tensor_parallel
    together = int(cache // (length * sizes.slot))
    note = f", KV cache for {max(0, together)} whole CoTs at a time, max_num_seqs {pool.max_num_seqs}"
    parts = {"weights": float(weights), "KV cache": cache} | (
        {"work": VLLM_WORK * pool.tensor_parallel} if pool.gpus else {}
    )
    return Need("semantic", pool.replicas, pool.gpus, parts, note)


def _image(config: RunConfig, sizes: ModelSizes) -> Need:
    pool, janus = config.image, sizes.janus
    rows = pool.batch_size * (2 if pool.guidance_scale != 1 else 1)
    tokens = janus.vq_config.num_patches**2 + config.semantic.max_prompt_tokens + config.semantic.max_tokens
    pixels = (janus.vq_config.num_patches * 2 ** (len(janus.vq_config.channel_multiplier) - 1)) ** 2
    decoded = min(pool.decode_batch, pool.batch_size)
    width = cache_dtype(getattr(torch, config.policy.dtype), not pool.gpus, pool.compile).itemsize
    parts = {
        "weights": sizes.total * sizes.width,
        "KV cache up to": rows * tokens * sizes.slot * width // sizes.width,
        "decoder about": 4 * decoded * pixels * janus.vq_config.base_channels * sizes.width,
    }
    return Need("image", pool.replicas, pool.gpus, parts)


def _learner(config: RunConfig, sizes: ModelSizes) -> Need:
    """DeepSpeed's memory; the formula was checked against the storages of tiny models.

    In mixed precision, summed gradients, master weights and Adam's two moments are float32. Each higher stage of ZeRO
    partitions more of them over the ranks. Stage 3 keeps the heads whole, and some layers while they compute.
    """
    learner, width, text = config.learner, sizes.width, sizes.janus.text_config
    trained = _adapter(learner.lora, sizes.janus) if learner.lora else sizes.trained
    total = sizes.total + (trained if learner.lora else 0)
    half, ranks = width == 2, learner.ranks
    stage = max(learner.zero_stage, 1) if half else learner.zero_stage
    model = total * width
    if stage == 3:
        heads = text.hidden_size * (text.vocab_size + sizes.janus.vq_config.num_embeddings)
        model = total * width / ranks + heads * width
    has_copy = learner.objective.beta and not learner.lora  # the reference is the model with its adapter switched off
    copied = model if stage == 3 else sizes.trained * width
    backward = trained * width if stage < 2 else min(trained, _BUCKET) * width
    parts = {
        "weights": float(model),
        "reference": float(copied) if has_copy else 0.0,
        "gradients": (trained * 4 / (ranks if stage >= 2 else 1) if half else 0) + backward,
        "optimizer": trained * (16 if half else 12) / (ranks if stage >= 1 else 1),
        "activations": _activations(config, sizes) + (min(total, _LIVE) * width if stage == 3 else 0),
    }
    return Need("learner", ranks, learner.gpus, parts)


def _adapter(lora: LoraConfig, janus: JanusConfig) -> int:
    """Parameters of a LoRA adapter: rank x (inputs + outputs) for each linear layer that has it."""
    text = janus.text_config
    hidden, kv = text.hidden_size, text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    ends = {"q": 2 * hidden, "k": hidden + kv, "v": hidden + kv, "o": 2 * hidden}
    total = sum(ends.get(target.removesuffix("_proj"), hidden + text.intermediate_size) for target in lora.targets)
    return lora.rank * total * int(text.num_hidden_layers)


def _activations(config: RunConfig, sizes: ModelSizes) -> float:
    """The activations that one micro-batch keeps for its backward pass, and a chunk of logits.

    The constants are bytes per token in bfloat16; float32 takes twice that, and norms in bfloat16 keep float32
    copies. They are fitted to the tensors of tiny models.
    """
    text, learner = sizes.janus.text_config, config.learner
    hidden, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    rank, copies = learner.lora.rank if learner.lora else 0, 4 * hidden if sizes.width == 2 else 0
    if learner.recompute == "nothing":
        layer = (18 if rank else 22) * hidden + 8 * inner + 8 * text.num_attention_heads + 14 * rank
        token = (layer + copies) * layers + 20 * hidden
    elif learner.recompute == "selective":  # an adapter's products are kept beside those of its weights
        layer = (20 if rank else 12) * hidden + 4 * text.num_attention_heads + 8 * rank
        token = layer * layers + 14 * hidden + 12 * inner
    else:
        token = 2 * hidden * layers + (18 if rank else 22) * hidden + copies + 12 * inner
    return learner.micro_batch_tokens * token * sizes.width / 2 + LOGITS
