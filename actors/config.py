"""The settings of the two rollout pools. Loads without torch, Ray or vLLM."""

from typing import Self

from pydantic import Field, PositiveFloat, model_validator

from policy.config import Pixels
from policy.settings import Cores, GiB, Gpus, Pictures, Processes, Seconds, Settings, Threads, Tokens


class _Pool(Settings):
    """Size and resources of one pool of actors."""

    replicas: Processes = Field(1, ge=1, description="Actors in the pool.")
    cpus: Cores = Field(1.0, ge=0, description="CPU cores that one actor reserves; fractions share a core.")
    gpus: Gpus = Field(0.0, ge=0, description="GPUs that one actor reserves; fractions share a GPU, 0 runs on CPU.")
    resources: dict[str, PositiveFloat] = Field(
        {}, description="Custom Ray resources that one actor reserves; they place the pool on nodes that offer them."
    )
    threads: Threads = Field(1, ge=1, description="Compute threads of one actor on CPU.")
    deadline_s: Seconds = Field(
        300.0, gt=0, description="Seconds that one call may wait for its results, time in the queue included."
    )


class SemanticConfig(_Pool):
    """The pool that writes the semantic-level CoT with vLLM."""

    enabled: bool = Field(True, description="false: draw from the prompt alone, without a semantic-level CoT.")
    max_tokens: Tokens = Field(256, ge=1, description="Longest CoT in tokens; longer ones are cut off.")
    max_prompt_tokens: Tokens = Field(512, ge=1, description="Longest stage-1 prompt in tokens.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    top_k: Tokens = Field(
        0, ge=0, description="Draw from the k likeliest tokens only; 0 is off. With top_k the log-probs are those of "
        "the full softmax (as in T2I-R1's code), not of the truncated distribution."
    )  # fmt: skip
    max_num_seqs: int = Field(64, ge=1, description="Sequences that vLLM decodes together.")
    tensor_parallel: int = Field(
        1,
        ge=1,
        description="GPUs (on CPU: processes) that one actor spreads its model over; `gpus` must equal it.",
    )
    kv_cache_gb: GiB = Field(
        0.5, gt=0, description="Memory of vLLM's KV cache on CPU, in GiB. On a GPU, gpu_memory_utilization decides."
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of the GPU's memory that vLLM takes, weights and KV cache together."
    )
    enforce_eager: bool = Field(True, description="false: vLLM captures CUDA graphs; slower start, faster decode.")
    prefix_caching: bool = Field(
        False, description="Share the KV cache of equal prompt prefixes. Rounding then depends on earlier requests."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.gpus and self.tensor_parallel > 1 and self.gpus != self.tensor_parallel:
            raise ValueError(f"gpus: {self.gpus:g} must equal tensor_parallel, {self.tensor_parallel}, or be 0")
        if self.top_k and self.temperature != 1.0:
            raise ValueError("top_k: log-probs of the full softmax are known at temperature 1 only")
        return self


class ImageConfig(_Pool):
    """The pool that samples image tokens and decodes the pictures."""

    batch_size: Pictures = Field(64, ge=1, description="Pictures decoded together; guidance runs two rows for each.")
    guidance_scale: float = Field(5.0, ge=1, description="Classifier-free guidance scale w; 1 is off.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    decode_batch: Pictures = Field(
        16, ge=1, description="Pictures that the VQ decoder decodes at once; limits its memory."
    )
    pixels: Pixels = Field(
        "round",
        description="How a decoded value becomes a byte. round: to the nearest. truncate: down, as in T2I-R1's "
        "script; half of all bytes are then one lower.",
    )
    compile: bool = Field(
        False, description="Compile the decode step with torch: the first pictures take seconds longer, later ones "
        "are faster. Needs a C++ compiler on CPU."
    )  # fmt: skip
    cuda_graph: bool = Field(
        False, description="Capture the decode step as a CUDA graph, with one launch per step; on GPUs only."
    )  # fmt: skip

    @model_validator(mode="after")
    def _graphs_need_a_gpu(self) -> Self:
        if self.cuda_graph and not self.gpus:
            raise ValueError("cuda_graph: the image pool has no GPU (gpus: 0); leave it false")
        return self
