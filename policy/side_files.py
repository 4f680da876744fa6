"""The files beside the weights of a checkpoint: tokenizer and processor files, in either layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import transformers

from policy.checkpoint import IMAGE_TOKEN, load_tokenizer
from policy.tokens import BEGIN_OF_IMAGE, END_OF_IMAGE

_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
_PIXELS = {  # Janus-Pro's values; a checkpoint's own preprocessor_config.json overrides them
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_size": 14,
    "rescale_factor": 1 / 255,
}


def copy_side_files(source: Path, out: Path) -> None:
    """Copy tokenizer, chat template and processor files as they are."""
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def hf_side_files(folder: Path, config: transformers.JanusConfig) -> None:
    """Turn the original layout's files in `folder` into those of transformers' JanusProcessor."""
    image = {"image_token": IMAGE_TOKEN, "boi_token": BEGIN_OF_IMAGE, "eoi_token": END_OF_IMAGE}
    _update(folder / "tokenizer_config.json", image | {"processor_class": "JanusProcessor"})
    pixels = _pixels(folder)
    size = config.vision_config.image_size
    pixels |= {"image_processor_type": "JanusImageProcessor", "size": {"height": size, "width": size}}
    _write(folder / "preprocessor_config.json", pixels | {"processor_class": "JanusProcessor"})
    count = config.vision_config.num_image_tokens
    _write(folder / "processor_config.json", {"processor_class": "JanusProcessor", "num_image_tokens": count})


def original_side_files(folder: Path, config: transformers.JanusConfig) -> None:
    """Turn the Hugging Face layout's files in `folder` into those of the original's VLChatProcessor."""
    tokenizer = load_tokenizer(folder)
    named = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    others = [token for token in tokenizer.all_special_tokens if token not in named.values()]
    _write(folder / "special_tokens_map.json", {"additional_special_tokens": others, **named})
    told = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False, **named}
    _write(folder / "tokenizer_config.json", told | {"model_max_length": tokenizer.model_max_length})
    pixels = _pixels(folder)
    pixels |= {"image_processor_type": "VLMImageProcessor", "image_size": config.vision_config.image_size}
    _write(folder / "preprocessor_config.json", pixels | {"processor_class": "VLChatProcessor"})
    processor = {
        "processor_class": "VLChatProcessor",
        "image_tag": IMAGE_TOKEN,
        "num_image_tokens": config.vision_config.num_image_tokens,
        "sft_format": "deepseek",
        "add_special_token": False,
        "mask_prompt": True,
        "ignore_id": -100,
    }
    _write(folder / "processor_config.json", processor)
    (folder / "generation_config.json").unlink(missing_ok=True)  # the original draws with a loop of its own


def _pixels(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {key: told.get(key, value) for key, value in _PIXELS.items()}


def _update(path: Path, values: dict[str, Any]) -> None:
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    _write(path, told | values)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
