"""The other process of the weights benchmark: an image actor's model, or a vLLM engine, that takes weights."""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers

from actors.config import ImageConfig, SemanticConfig
from actors.image_actor import Painter
from actors.semantic import SemanticWriter, WriteRequest
from benchmarks.scales import make_model
from policy.config import PolicyConfig
from policy.janus import Policy, trained_parameters
from policy.lora import BaseWeights
from transport.weights.broadcast import BroadcastMember, Seat, at_seat
from transport.weights.channel import Published, WeightManifest
from transport.weights.object_store import ObjectStoreReceiver

_DEADLINE_S = 60.0
_SETTINGS = SemanticConfig(max_tokens=16, max_prompt_tokens=48, max_num_seqs=4, kv_cache_gb=0.1)
_PROMPT, _SEED = list(range(5, 40)), 7


class ImageReceiver:
    """The image actor's model and its loading, without its queue."""

    def __init__(self, scale: str, device: str, dtype: torch.dtype) -> None:
        policy = make_model(scale, device, dtype, seed=1)
        self._model: Any = policy.model.requires_grad_(False)
        self._newest = self._model
        self._member: BroadcastMember | None = None
        self._device = device
        config = ImageConfig(batch_size=1, gpus=float(device == "cuda"))
        self._painter = Painter(policy, config, BaseWeights(PolicyConfig(checkpoint="random"), device))

    def apply(self, published: Published) -> None:
        """As `ImageActor.apply_weights`."""
        self._newest = self._model
        self._painter.load(published.version, list(ObjectStoreReceiver().receive(published, _DEADLINE_S)))

    def receive(self, manifest: WeightManifest, seat: Seat) -> None:
        """As `ImageActor.receive_weights`."""
        self._newest = self._model
        self._member = at_seat(self._member, seat)
        self._painter.receive(manifest, self._member, _DEADLINE_S)

    def load_torch(self, path: Path) -> None:
        """What `torch.save` wrote, into the model."""
        self._take(torch.load(path, map_location=self._device, weights_only=True))

    def load_safetensors(self, path: Path) -> None:
        """What `save_file` wrote, into the model."""
        self._take(safetensors.torch.load_file(path, device=self._device))

    def load_pretrained(self, folder: Path) -> None:
        """A new model from a folder."""
        load: Any = transformers.JanusForConditionalGeneration.from_pretrained
        self._newest = load(folder, dtype="auto").to(self._device)

    def clear(self) -> None:
        """Set what trains to 0, and forget a newer model."""
        self._newest = self._model
        with torch.no_grad():
            for parameter in trained_parameters(self._model, "generation").values():
                parameter.zero_()

    def digest(self) -> int:
        """Of the weights that train, in the model that got weights last."""
        return digest(self._newest)

    def _take(self, tensors: dict[str, torch.Tensor]) -> None:
        self._newest = self._model
        _, unexpected = self._model.load_state_dict(tensors, strict=False)
        if unexpected:
            raise RuntimeError(f"the model has no {unexpected}")


class SemanticReceiver:
    """The semantic actor's engine and its loading, without its queue."""

    def __init__(self, policy: Policy) -> None:
        config, base = policy.model.config.text_config, BaseWeights(PolicyConfig(checkpoint="random"))
        self._trained = trained_parameters(policy.model, "language_model")
        self._writer = SemanticWriter(config, policy.layout, "float32", _SETTINGS, base)

    def apply(self, published: Published) -> None:
        """As `SemanticActor.apply_weights`."""
        self._writer.load(published.version, list(ObjectStoreReceiver().receive(published, _DEADLINE_S)))

    def receive(self, manifest: WeightManifest, seat: Seat) -> None:
        """As `SemanticActor.receive_weights`."""
        self._writer.receive(manifest, seat, _DEADLINE_S)

    def clear(self) -> None:
        """Give the engine weights that are all 0."""
        tensors = [(name, torch.zeros_like(tensor)) for name, tensor in self._trained.items()]
        self._writer.load(0, tensors)

    def draw(self) -> list[int]:
        """The tokens of a seed."""
        self._writer.admit([(0, WriteRequest(_PROMPT, _SEED))])
        while not (done := self._writer.step()):
            pass
        return done[0].token_ids.tolist()


class FreshEngine:
    """A vLLM engine on saved files."""

    def start(self, folder: Path) -> float:
        """Seconds until the engine is there, after its imports."""
        from actors.semantic import _prepare_process

        _prepare_process(_SETTINGS)
        from vllm import LLM

        began = time.perf_counter()
        self._llm = LLM(
            str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=64, max_num_seqs=4,
            enforce_eager=True, kv_cache_memory_bytes=int(_SETTINGS.kv_cache_gb * 2**30),
        )  # fmt: skip
        return time.perf_counter() - began

    def draw(self) -> list[int]:
        """As `SemanticReceiver.draw`."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=1.0, seed=_SEED, max_tokens=_SETTINGS.max_tokens, detokenize=False)
        found: Any = self._llm.generate([{"prompt_token_ids": _PROMPT}], params, use_tqdm=False)
        return list(found[0].outputs[0].token_ids)


def digest(model: Any) -> int:
    """CRC-32 of all tensors that train, in the model's order."""
    value = 0
    for parameter in trained_parameters(model, "generation").values():
        flat = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
        value = zlib.crc32(flat.numpy().data, value)
    return value
