"""Configuration of the learner: the objective, the optimizer and how the ranks work. Imports no torch."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, PositiveFloat, model_validator

from policy.settings import Cores, Elements, Gpus, Processes, Seconds, Settings, Steps, Teraflops, Threads, Tokens


class ObjectiveConfig(Settings):
    """The BiCoT-GRPO objective (arXiv 2505.00703)."""

    distribution: Literal["conditional", "guided"] = Field(
        default="guided",
        description="The optimised distribution of the image tokens: guided, which the sampler draws from, or "
        "conditional (as in T2I-R1's code).",
    )
    clip: bool = Field(default=True, description="Clip the ratio. false: the plain importance ratio times advantage.")
    clip_low: float = Field(default=0.2, gt=0, le=1, description="The ratio is clipped below 1 - clip_low.")
    clip_high: float = Field(
        default=0.2, gt=0, description="The ratio is clipped above 1 + clip_high; above clip_low it is clip-higher."
    )
    beta: float = Field(
        default=0.01, ge=0, description="Weight of the k3 KL to the frozen reference policy; with 0 there is none."
    )
    std: bool = Field(default=True, description="Divide advantages by the standard deviation of the group's rewards.")
    std_eps: float = Field(default=1e-4, gt=0, description="Added to the standard deviation of the rewards.")
    normalise: Literal["sum_then_normalise", "normalise_then_sum"] = Field(
        default="sum_then_normalise",
        description="What to normalise within a group: the weighted sum of the rewards (the paper), or each reward.",
    )
    semantic_weight: float = Field(
        default=1.0, ge=0, description="Policy-gradient weight of the semantic segment; 0 keeps only its KL."
    )
    image_weight: float = Field(
        default=1.0, ge=0, description="Policy-gradient weight of the image segment; 0 keeps only its KL."
    )


class OptimizerConfig(Settings):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=1e-6, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="The learning rate after the warm-up: constant, or falling to 0 at the run's last step.",
    )
    warmup_steps: Steps = Field(default=0, ge=0, description="Steps over which the learning rate rises from 0.")
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999), description="Decay rates of AdamW's two moments, both in [0, 1)."
    )
    eps: float = Field(default=1e-8, gt=0, description="Added to the denominator of AdamW's step.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay.")
    grad_norm: float = Field(
        default=1.0, ge=0, description="Largest global gradient norm; larger gradients are clipped. 0: no clipping."
    )

    @model_validator(mode="after")
    def _betas(self) -> OptimizerConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        return self


Linear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraConfig(Settings):
    """A LoRA adapter on the language model's linear layers; all other weights are frozen, embeddings included."""

    rank: int = Field(default=32, ge=1, description="Rank of the adapter's matrices.")
    alpha: float = Field(default=64.0, gt=0, description="The adapter's product is multiplied by alpha / rank.")
    dropout: float = Field(
        default=0.0, description="Must be 0: with dropout the trained policy differs from the sampled one."
    )
    targets: tuple[Linear, ...] = Field(
        default=get_args(Linear),
        min_length=1,
        description="Linear layers that get an adapter, in every decoder layer.",
    )

    @model_validator(mode="after")
    def _exact(self) -> LoraConfig:
        if self.dropout:
            raise ValueError(
                f"dropout must be 0, got {self.dropout:g}: with dropout the trained policy differs from the sampled "
                "one, and the ratio of log-probs is noise"
            )
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets names a layer twice: {', '.join(self.targets)}")
        return self


class LearnerConfig(Settings):
    """The learner pool: ranks, memory and waiting."""

    ranks: Processes = Field(default=1, ge=1, description="Learner processes; each is one data-parallel rank.")
    cpus: Cores = Field(
        default=1, ge=0, description="CPU cores that Ray reserves for one rank; fractions share a core."
    )
    gpus: Gpus = Field(
        default=0, ge=0, description="GPUs that Ray reserves for one rank; fractions share a GPU, 0 runs on CPU."
    )
    resources: dict[str, PositiveFloat] = Field(
        default={}, description="Custom Ray resources of one rank; they place ranks on nodes that offer them."
    )
    threads: Threads = Field(default=1, ge=1, description="Threads that a rank computes with on CPU.")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0, description="DeepSpeed ZeRO stage; with bfloat16 weights stage 0 acts as 1."
    )
    zero_persistence: Elements = Field(
        default=100_000, ge=0, description="ZeRO 3: tensors with at most this many elements stay whole on every rank."
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="Train a LoRA adapter instead of the weights; null: train the weights of policy.trained.",
    )
    gradient_checkpointing: bool | Literal["selective"] = Field(
        default=False,
        description="Recompute layers in the backward pass to save memory; selective: only their MLPs.",
    )
    micro_batch_tokens: Tokens = Field(
        default=16384,
        ge=1,
        description="Most tokens in one forward-backward pass of a rank; a prompt that rows share counts once, a "
        "guided image row twice.",
    )
    deadline_s: Seconds = Field(
        default=600, gt=0, description="Seconds that any collective or wait of the learner may take."
    )
    peak_tflops: Teraflops | None = Field(
        default=None,
        gt=0,
        description="Peak of one rank's device, to compute the MFU; the default is the data sheet's, for known GPUs.",
    )
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="What is optimised.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="How it is optimised.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Checkpoints that stay on disk, the newest first.")

    @property
    def recompute(self) -> Literal["nothing", "selective", "layers"]:
        """`gradient_checkpointing` in the scorer's words."""
        if self.gradient_checkpointing == "selective":
            return "selective"
        return "layers" if self.gradient_checkpointing else "nothing"
