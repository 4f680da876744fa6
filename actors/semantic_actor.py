"""The semantic actor: one vLLM engine behind coroutine methods."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from actors.batch_loop import BatchLoop
from actors.config import SemanticConfig
from actors.errors import EngineError
from actors.requests import SemanticOutput, SemanticRequest
from actors.semantic import SemanticWriter, WriteRequest
from policy.checkpoint import load_tokenizer, open_checkpoint
from policy.config import PolicyConfig
from policy.janus import LANGUAGE_MODEL, check_checkpoint
from policy.lora import BaseWeights
from policy.tokens import PromptBuilder, TokenLayout
from transport.errors import WeightsHalfWritten
from transport.trajectory import SemanticSegment
from transport.weights.broadcast import Seat
from transport.weights.channel import Published, WeightManifest
from transport.weights.object_store import ObjectStoreReceiver

logger = logging.getLogger(__name__)


class SemanticActor:
    """Writes CoTs; concurrent calls share one batch.

    Has no weights until the first `apply_weights` (or `load_checkpoint`).
    """

    def __init__(self, policy: PolicyConfig, semantic: SemanticConfig) -> None:
        """
        Raises:
            CheckpointError: the checkpoint's config or tokenizer cannot be used.
        """
        start = time.perf_counter()
        self._config = semantic
        self._folder = policy.checkpoint
        config = check_checkpoint(policy.checkpoint, policy.templates)
        tokenizer = load_tokenizer(policy.checkpoint)
        layout = TokenLayout.of(tokenizer, config)
        self._prompts = PromptBuilder(tokenizer, layout, policy.templates)
        base = BaseWeights(policy, "cuda" if semantic.gpus else "cpu")
        self._writer = SemanticWriter(config.text_config, layout, policy.dtype, semantic, base)
        self._loop: BatchLoop[WriteRequest, SemanticSegment] = BatchLoop("semantic", self._writer)
        self._tokens = 0
        self._sync_s = 0.0
        logger.info("semantic actor ready after %.1f s", time.perf_counter() - start)

    async def generate(self, requests: Sequence[SemanticRequest]) -> list[SemanticOutput]:
        """One CoT for each request, in order, within the config's deadline.

        Raises:
            ActorError: see `actors.errors`.
        """
        asked = [WriteRequest(self._prompts.semantic_prompt(one.prompt), one.seed) for one in requests]
        segments = await self._loop.run(asked, self._config.deadline_s)
        self._tokens += sum(len(segment.token_ids) for segment in segments)
        return [SemanticOutput(segment, self._prompts.decode(segment.token_ids)) for segment in segments]

    async def apply_weights(self, published: Published) -> int:
        """Apply a published version; running requests finish at the old one. Returns the version.

        Raises:
            WeightTransferError: the transfer failed, or lacks a tensor; the old weights stay.
            DeadlineError: running requests did not end in time.
            EngineError: the weights are half written.
        """
        deadline = self._config.deadline_s
        tensors = await asyncio.to_thread(lambda: list(ObjectStoreReceiver().receive(published, deadline)))
        return await self._load(published.version, tensors)

    async def receive_weights(self, manifest: WeightManifest, seat: Seat, deadline_s: float) -> int:
        """Take part in a broadcast; the actor's workers have `seat` and the seats after it.

        Running requests finish first. Returns the version. The meeting of the members may take `deadline_s` seconds,
        and so may the transfer.

        Raises:
            WeightTransferError: the members did not meet, or a tensor does not fit; the old weights stay.
            DeadlineError: running requests did not end in time.
            EngineError: the broadcast broke off, and the weights are half written.
        """
        return await self._replace(lambda: self._writer.receive(manifest, seat, deadline_s))

    async def load_checkpoint(self, version: int = 0) -> int:
        """Load the language model from the policy's checkpoint on disk; its files are memory-mapped."""
        return await self._load(version, list(open_checkpoint(self._folder).tensors(LANGUAGE_MODEL)))

    async def _load(self, version: int, tensors: list[tuple[str, Tensor]]) -> int:
        return await self._replace(lambda: self._writer.load(version, tensors))

    async def _replace(self, work: Callable[[], int]) -> int:
        """Load new weights in the engine's thread; returns the version."""
        start = time.perf_counter()
        try:
            version = await self._loop.exclusive(work, self._config.deadline_s)
        except WeightsHalfWritten as error:
            raise EngineError(str(error)) from error
        self._sync_s = time.perf_counter() - start
        return version

    def metrics(self) -> dict[str, float]:
        """Counters since the start; `sync_s` is how long the last weight update took, waiting included.

        `vllm_...` are vLLM's own.
        """
        version = -1 if self._writer.version is None else self._writer.version
        return (
            self._loop.metrics()
            | self._writer.metrics()
            | {
                "tokens": float(self._tokens),
                "sync_s": self._sync_s,
                "weight_version": float(version),
            }
        )

    def close(self) -> None:
        """Stop taking work (running requests fail), and end the engine's worker processes, if it has any."""
        self._loop.close()
        self._writer.close()
