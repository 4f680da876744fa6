"""The image actor: the image sampler and the VQ decoder behind coroutine methods."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from actors.batch_loop import BatchLoop
from actors.config import ImageConfig
from actors.errors import EngineError, WeightsError
from actors.requests import ImageOutput, ImageRequest
from actors.sampler import ImageSampler, SampleRequest
from policy.config import PolicyConfig
from policy.errors import CheckpointError
from policy.janus import Policy, load_policy
from policy.lora import Adapter, AdapterError, BaseWeights, received_adapter
from policy.pictures import decode_pictures
from transport.errors import WeightTransferError
from transport.trajectory import ImageSegment
from transport.weights.broadcast import BroadcastMember, Seat, at_seat
from transport.weights.channel import Published, WeightManifest
from transport.weights.object_store import ObjectStoreReceiver

logger = logging.getLogger(__name__)


class Painter:
    """The sampler and the VQ decoder, as an engine for the batch loop; `version` tags its results."""

    def __init__(self, policy: Policy, config: ImageConfig, base: BaseWeights) -> None:
        """A LoRA adapter is merged into the weights `base`; the result overwrites the model's weights."""
        self.version = 0
        self._base = base
        self._policy = policy
        self._config = config
        self._sampler = ImageSampler(
            policy, config.batch_size, config.guidance_scale, config.temperature, config.compile, config.cuda_graph
        )
        self._prompts: dict[int, Tensor] = {}
        self._state = policy.model.state_dict()

    @property
    def free(self) -> int:
        """How many pictures can join now."""
        return self._sampler.free

    def check(self, request: SampleRequest) -> None:
        """Refuse a prompt that leaves no room for the picture, with a `PromptError`."""
        self._sampler.check(request)

    def admit(self, requests: Sequence[tuple[int, SampleRequest]]) -> None:
        """Add at most `free` checked requests to the batch."""
        self._prompts.update((key, request.prompt_ids) for key, request in requests)
        self._sampler.admit(requests)

    def step(self) -> dict[int, ImageOutput]:
        """Draw one token for every picture; decodes and returns the complete pictures, by key."""
        done = list(self._sampler.step().items())
        outputs: dict[int, ImageOutput] = {}
        for start in range(0, len(done), self._config.decode_batch):
            part = done[start : start + self._config.decode_batch]
            tokens = torch.stack([image.token_ids for _, image in part])
            pictures = decode_pictures(self._policy.model, tokens, self._config.pixels)
            for (key, image), picture in zip(part, pictures, strict=True):
                segment = ImageSegment(
                    prompt_ids=self._prompts.pop(key),
                    token_ids=image.token_ids,
                    conditional_logprobs=image.conditional_logprobs,
                    guided_logprobs=image.guided_logprobs,
                    guidance_scale=self._config.guidance_scale,
                    temperature=self._config.temperature,
                    weight_version=self.version,
                )
                outputs[key] = ImageOutput(segment, picture.copy())
        return outputs

    def cancel(self, keys: set[int]) -> None:
        """Drop these pictures; unknown keys are ignored."""
        for key in keys:
            self._prompts.pop(key, None)
        self._sampler.cancel(keys)

    def load(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> int:
        """Copy tensors into the model in place, by their `state_dict` names; a LoRA adapter is merged on the way.

        Version 0 of an adapter is 0; it gives the checkpoint's weights, with which the model starts.

        Raises:
            WeightsError: a name or a shape does not fit, or there is no tensor; the model is unchanged.
            EngineError: the checkpoint, needed to merge an adapter, cannot be read; the model is half written.
        """
        pairs = list(tensors)
        adapter = self._fitting(version, pairs)
        try:
            self._write(adapter.merged(self._base.tensor) if adapter else pairs)
        except (CheckpointError, OSError) as error:
            raise EngineError(f"weights {version}: half written, for the checkpoint is gone: {error}") from error
        self.version = version
        return version

    def receive(self, manifest: WeightManifest, member: BroadcastMember, deadline_s: float) -> int:
        """Take part in the broadcast of `manifest`, and copy every bucket into the model as it arrives.

        The meeting of the members may take `deadline_s` seconds, and so may the transfer.

        Raises:
            WeightsError: the announced tensors do not fit; the model is unchanged.
            WeightTransferError: the members did not meet, or an adapter did not arrive; the model is unchanged.
            EngineError: the broadcast broke off; the model is half written.
        """
        version = manifest.version
        adapter = self._fitting(version, manifest.stand_ins())
        member.meet(version, deadline_s)
        tensors = member.receive(manifest, deadline_s, keep=adapter is not None)
        if adapter:
            return self.load(version, tensors)
        try:
            self._write(tensors)
        except WeightTransferError as error:
            raise EngineError(f"half written: {error}") from error
        self.version = version
        return version

    def _fitting(self, version: int, pairs: Sequence[tuple[str, Tensor]]) -> Adapter | None:
        """The adapter in these tensors; None if they are whole weights. Checks that they fit the model."""
        try:
            adapter = received_adapter(pairs)
        except AdapterError as error:
            raise WeightsError(f"weights {version}: {error}") from error
        for name, shape in (adapter.shapes() if adapter else {n: tuple(t.shape) for n, t in pairs}).items():
            if name not in self._state:
                raise WeightsError(f"weights {version}: the model has no tensor {name!r}")
            if tuple(self._state[name].shape) != shape:
                raise WeightsError(
                    f"weights {version}: {name!r} has shape {list(shape)}, "
                    f"the model's is {list(self._state[name].shape)}"
                )
        if not pairs:
            raise WeightsError(f"weights {version}: no tensor came")
        return adapter

    def _write(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        with torch.no_grad():
            for name, tensor in tensors:
                self._state[name].copy_(tensor)


class ImageActor:
    """Draws pictures; concurrent calls share one batch.

    Starts at version 0, the checkpoint's weights.
    """

    def __init__(self, policy: PolicyConfig, image: ImageConfig) -> None:
        """
        Raises:
            CheckpointError: the checkpoint cannot be used.
            EngineError: `image.compile` on a CPU without a C++ compiler.
        """
        start = time.perf_counter()
        self._config = image
        if image.compile and not image.gpus and not shutil.which(os.environ.get("CXX", "g++")):
            raise EngineError("image.compile: needs a C++ compiler; install g++, or name one in CXX")
        if not image.gpus:
            torch.set_num_threads(image.threads)
        device = "cuda" if image.gpus else "cpu"
        loaded = load_policy(policy, device)
        self._prompts = loaded.prompts
        self._painter = Painter(loaded, image, BaseWeights(policy, device))
        self._loop: BatchLoop[SampleRequest, ImageOutput] = BatchLoop("image", self._painter)
        self._member: BroadcastMember | None = None
        self._sync_s = 0.0
        logger.info("image actor ready after %.1f s", time.perf_counter() - start)

    async def sample(self, requests: Sequence[ImageRequest]) -> list[ImageOutput]:
        """One picture for each request, in order, within the config's deadline.

        Raises:
            ActorError: see `actors.errors`.
        """
        asked = [
            SampleRequest(torch.tensor(self._prompts.image_prompt(one.prompt, one.cot)), one.seed) for one in requests
        ]
        return await self._loop.run(asked, self._config.deadline_s)

    async def apply_weights(self, published: Published) -> int:
        """Apply a published version; running pictures finish at the old one. Returns the version.

        Raises:
            WeightTransferError: the transfer failed; the old weights stay.
            WeightsError: a tensor does not fit; the old weights stay.
            DeadlineError: running pictures did not end in time.
        """
        start = time.perf_counter()
        deadline = self._config.deadline_s
        tensors = await asyncio.to_thread(lambda: list(ObjectStoreReceiver().receive(published, deadline)))
        await self._loop.exclusive(lambda: self._painter.load(published.version, tensors), deadline)
        self._sync_s = time.perf_counter() - start
        return published.version

    async def receive_weights(self, manifest: WeightManifest, seat: Seat, deadline_s: float) -> int:
        """Take part in a broadcast at `seat` of its group; running pictures finish first.

        Returns the version. The meeting of the members may take `deadline_s` seconds, and so may the transfer.

        Raises:
            WeightTransferError: the members did not meet; the old weights stay.
            WeightsError: a tensor does not fit; the old weights stay.
            DeadlineError: running pictures did not end in time.
            EngineError: the broadcast broke off, and the weights are half written.
        """
        start = time.perf_counter()

        def work() -> int:
            self._member = at_seat(self._member, seat)
            return self._painter.receive(manifest, self._member, deadline_s)

        await self._loop.exclusive(work, self._config.deadline_s)
        self._sync_s = time.perf_counter() - start
        return manifest.version

    def metrics(self) -> dict[str, float]:
        """Counters since the start; `sync_s` is how long the last weight update took, waiting included."""
        drawn = self._loop.metrics()
        tokens = drawn["row_steps"]  # every picture gets one token a step
        return drawn | {"tokens": tokens, "sync_s": self._sync_s, "weight_version": float(self._painter.version)}

    def close(self) -> None:
        """Stop taking work; running requests fail."""
        self._loop.close()
        if self._member:
            self._member.leave()
