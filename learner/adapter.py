"""The LoRA adapter that the learner trains: peft's layers on the language model of a Janus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration

from learner.config import LoraConfig
from policy.lora import adapter_name

_NAME = "default"
_FOLDER = "adapter"


class TrainedAdapter:
    """Adds an adapter to `model` and freezes the model's other parameters.

    The adapter starts at 0 (B is 0). A fixed seed draws A, so A is the same on every rank and in every layout.
    """

    def __init__(self, model: JanusForConditionalGeneration, config: LoraConfig) -> None:
        self.scale = config.alpha / config.rank
        self._peft = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it by the rank; fractions do no harm
            lora_dropout=0.0,
            target_modules=rf"model\.language_model\.layers\.\d+\.\w+\.({'|'.join(config.targets)})",
            inference_mode=False,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            peft.inject_adapter_in_model(self._peft, model, _NAME)
        self._layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The matrices by their published names, each B after its A."""
        return {
            name: parameter
            for weight, (a, b) in self.pairs().items()
            for name, parameter in ((adapter_name("A", weight), a), (adapter_name("B", weight), b))
        }

    def pairs(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """A [rank, in] and B [out, rank] by the state-dict name of the weight that they change."""
        return {
            f"{name}.weight": (
                layer.get_parameter(f"lora_A.{_NAME}.weight"),
                layer.get_parameter(f"lora_B.{_NAME}.weight"),
            )
            for name, layer in self._layers.items()
        }

    @staticmethod
    def plain_name(name: str) -> str | None:
        """The plain model's name for a state-dict name; None for the adapter's own tensors."""
        return None if ".lora_A." in name or ".lora_B." in name else name.replace(".base_layer.", ".")

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model without its adapter inside the context: the base model, bit for bit."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    def save(self, tensors: Mapping[str, tuple[Tensor, ...]], folder: Path) -> None:
        """Write whole A and B by weight in peft's format, for `PeftModel.from_pretrained` on the base checkpoint."""
        folder = (
            folder / _FOLDER
        )  # in the folder of config.json, transformers would add the adapter to the merged weights
        folder.mkdir(parents=True, exist_ok=True)
        self._peft.save_pretrained(str(folder))
        named = {
            f"base_model.model.{weight.removesuffix('.weight')}.lora_{matrix}.weight": tensor.cpu().contiguous()
            for weight, pair in tensors.items()
            for matrix, tensor in zip("AB", pair, strict=True)
        }
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
