"""The semantic-level CoT with vLLM: an engine in this process over the language model of a Janus checkpoint.

vLLM gets only the model's shape and never reads a checkpoint. Weights always arrive through its weight-transfer
interface, so the first load, a sync and a restart use the same path. Before the first weights nothing can be
generated.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from actors.config import SemanticConfig
from actors.errors import PromptError, WeightsError
from policy.lora import BaseWeights
from policy.tokens import TokenLayout
from transport.errors import WeightsHalfWritten, WeightTransferError
from transport.trajectory import SemanticSegment
from transport.weights.broadcast import Seat
from transport.weights.channel import Published, WeightManifest, WeightReceiver

logger = logging.getLogger(__name__)

_METRICS = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:num_preemptions": "preemptions",
    "vllm:prompt_tokens": "prompt_tokens",
    "vllm:generation_tokens": "generation_tokens",
    "vllm:prefix_cache_queries": "prefix_cache_queries",
    "vllm:prefix_cache_hits": "prefix_cache_hits",
}
"""The forwarded metrics of vLLM, and their names here; vLLM's kv_cache_usage_perc is a share of 1."""


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """`prompt_ids` of stage 1, and the member's seed."""

    prompt_ids: Sequence[int]
    seed: int


class SemanticWriter:
    """vLLM's engine, one step at a time.

    Log-probs are those of the sampling distribution, after temperature and without top-p; with top-k they are those
    of the full softmax. At temperature 0 they are those at temperature 1.
    """

    def __init__(
        self,
        model: LlamaConfig,
        layout: TokenLayout,
        dtype: str,
        config: SemanticConfig,
        base: BaseWeights,
    ) -> None:
        """Start the engine; `model` is the checkpoint's language model config, `dtype` its number format.

        A LoRA adapter is merged into the weights `base`.

        Raises:
            ValueError: the model's positions leave no room for a prompt beside `max_tokens`.
        """
        self.version: int | None = None
        self._config = config
        self._layout = layout
        self._base = base
        self._prompts: dict[int, Tensor] = {}
        length = min(config.max_prompt_tokens + config.max_tokens, model.max_position_embeddings)
        self._longest_prompt = length - config.max_tokens
        if self._longest_prompt < 1:
            raise ValueError(
                f"semantic.max_tokens: {config.max_tokens} leaves no room for a prompt in the model's "
                f"{model.max_position_embeddings} positions"
            )
        _prepare_process(config)
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        from transport.weights.vllm_engine import WORKER, register

        with tempfile.TemporaryDirectory(prefix="bicot-llama-") as folder:
            _write_shape(model, dtype, Path(folder))
            self._llm: Any = LLM(
                model=folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype=dtype,
                max_model_len=length,
                max_num_seqs=config.max_num_seqs,
                logprobs_mode="raw_logprobs" if config.top_k else "processed_logprobs",
                tensor_parallel_size=config.tensor_parallel,
                worker_extension_cls=WORKER,
                enable_prefix_caching=config.prefix_caching,
                # A prompt that is prefilled in parts draws and discards tokens, which advances its seed's generator
                # (and fails on CPUs).
                enable_chunked_prefill=False,
                enforce_eager=config.enforce_eager,
                gpu_memory_utilization=config.gpu_memory_utilization,
                kv_cache_memory_bytes=None if config.gpus else int(config.kv_cache_gb * 2**30),
                weight_transfer_config=WeightTransferConfig(backend=register()),
                disable_log_stats=False,  # it keeps the metrics
            )

    @property
    def free(self) -> int:
        """Requests that can join now."""
        return self._config.max_num_seqs - len(self._prompts)

    def check(self, request: WriteRequest) -> None:
        """
        Raises:
            WeightsError: there are no weights yet, or the last update broke off.
            PromptError: the prompt is empty or too long.
        """
        if self.version is None:
            raise WeightsError("the semantic actor has no weights yet: apply a published version first")
        if not 1 <= len(request.prompt_ids) <= self._longest_prompt:
            raise PromptError(
                f"a stage-1 prompt has {len(request.prompt_ids)} tokens; at most {self._longest_prompt} leave room "
                f"for semantic.max_tokens = {self._config.max_tokens}"
            )

    def admit(self, requests: Sequence[tuple[int, WriteRequest]]) -> None:
        """Give at most `free` checked requests to vLLM's scheduler."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        for key, request in requests:
            params = SamplingParams(
                temperature=self._config.temperature,
                top_k=self._config.top_k or -1,
                seed=request.seed,
                max_tokens=self._config.max_tokens,
                stop_token_ids=[self._layout.eos],
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            ids = list(request.prompt_ids)
            self._prompts[key] = torch.tensor(ids)
            self._llm.llm_engine.add_request(str(key), {"prompt_token_ids": ids}, params)

    def step(self) -> dict[int, SemanticSegment]:
        """One step of vLLM's engine; the segments that it completes, by key."""
        outputs = self._llm.llm_engine.step()
        return {int(output.request_id): self._segment(output) for output in outputs if output.finished}

    def cancel(self, keys: set[int]) -> None:
        """Abort these requests; unknown ones are ignored."""
        known = [str(key) for key in keys if self._prompts.pop(key, None) is not None]
        if known:
            self._llm.llm_engine.abort_request(known)

    def load(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> int:
        """Load tensors, under their Janus `state_dict` names, into the engine; an adapter is merged into its base
        first.

        No request may be running.

        Raises:
            WeightTransferError: tensors that the model needs are missing; the engine is unchanged.
            WeightsHalfWritten: they did not fit, or the base could not be read; the engine is unusable.
        """
        from transport.weights.vllm_engine import apply_to_vllm

        published = Published(WeightManifest(version, (), ()), ())
        with self._replacing_weights(version):
            apply_to_vllm(
                self._llm, published, deadline_s=self._config.deadline_s, receiver=_Here(tensors), base=self._base
            )
        return version

    def receive(self, manifest: WeightManifest, seat: Seat, deadline_s: float) -> int:
        """Take part in the broadcast of `manifest`, with the engine's workers at `seat` and the seats after it.

        No request may be running. The meeting of the members may take `deadline_s` seconds, and so may the transfer.

        Raises:
            WeightTransferError: the members did not meet, or the tensors do not fit; the engine is unchanged.
            WeightsHalfWritten: the broadcast broke off; the engine is unusable.
        """
        from transport.weights.vllm_engine import broadcast_to_vllm

        with self._replacing_weights(manifest.version):
            broadcast_to_vllm(self._llm, manifest, seat, deadline_s=deadline_s, base=self._base)
        return manifest.version

    @contextmanager
    def _replacing_weights(self, version: int) -> Iterator[None]:
        """Leave the engine without a version if weights are half written; then it draws nothing."""
        before, self.version = self.version, None
        try:
            yield
        except WeightsHalfWritten:
            raise
        except WeightTransferError:
            self.version = before
            raise
        self.version = version

    def metrics(self) -> dict[str, float]:
        """vLLM's own metrics: counters since the start, and present values."""
        values = {_METRICS[one.name]: float(one.value) for one in self._llm.get_metrics() if one.name in _METRICS}
        return {f"vllm_{name}": value for name, value in values.items()}

    def close(self) -> None:
        """End the workers of a tensor-parallel engine; afterwards the engine is unusable."""
        if self._config.tensor_parallel > 1:
            self._llm.llm_engine.engine_core.shutdown()

    def _segment(self, output: Any) -> SemanticSegment:
        completion = output.outputs[0]
        key = int(output.request_id)
        assert self.version is not None
        return SemanticSegment(
            prompt_ids=self._prompts.pop(key),
            token_ids=torch.tensor(list(completion.token_ids)),
            logprobs=torch.tensor(_drawn_logprobs(completion)),
            temperature=self._config.temperature,
            finish_reason=completion.finish_reason,
            weight_version=self.version,
        )


class _Here(WeightReceiver):
    """The receiver of tensors that have already arrived."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._tensors = tensors

    def receive(self, published: Published, deadline_s: float) -> Iterator[tuple[str, Tensor]]:
        yield from self._tensors


def _drawn_logprobs(completion: Any) -> list[float]:
    """The log-prob of each drawn token; vLLM lists it first at every position."""
    flat = completion.logprobs
    drawn = [flat.token_ids[start] for start in flat.start_indices]
    if drawn != list(completion.token_ids):
        raise RuntimeError("vLLM's log-probs do not belong to the tokens it drew")
    return [flat.logprobs[start] for start in flat.start_indices]


def _write_shape(model: LlamaConfig, dtype: str, folder: Path) -> None:
    """Write the config.json of the language model by itself."""
    fields = model.to_dict() | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "dtype": dtype}
    LlamaConfig(**fields).save_pretrained(folder)


def _prepare_process(config: SemanticConfig) -> None:
    """Apply settings that vLLM reads at import, or that cannot change once its engine runs."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",  # tensors are handed to the engine by reference
        VLLM_CONFIGURE_LOGGING="0",  # vLLM logs to this process's log
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
    )
    if not config.gpus:
        # On a CPU compilation costs more than it saves; the flag also covers a dynamo that is already imported.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        torch._dynamo.config.disable = True
        # vLLM's kernels use OpenMP's number of threads, and fail if torch has another one.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
        # Binding needs one memory node per worker, and fails if one node has all the cores.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if config.tensor_parallel > 1:
            os.environ["OMP_NUM_THREADS"] = str(config.threads)  # of the workers, which start with it
    # It tries a chat template at the start, and logs a traceback because it was told to load no tokenizer.
    logging.getLogger("vllm.renderers.base").setLevel(logging.CRITICAL)
