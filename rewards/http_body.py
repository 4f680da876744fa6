"""The HTTP body of a scoring request: one safetensors file, so a JSON header and raw bytes, and no pickle.

Tensors `picture.0`, `picture.1`, ... are uint8 [H, W, 3]; the file's metadata holds, under `bicot`, the JSON text
`{"format": "bicot.reward/1", "prompts": [one prompt record a picture]}`. The answer is JSON,
`{"scores": [number or null, ...]}`, or `{"error": "..."}` with status 400 (the body) or 500 (the reward).
"""

from __future__ import annotations

import json

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from policy.prompts import PromptRecord

FORMAT = "bicot.reward/1"
MAX_BYTES = 256 * 2**20


class BodyError(ValueError):
    """Bytes that are no scoring request; names the fault."""


def decode_request(body: bytes) -> tuple[list[np.ndarray], list[PromptRecord]]:
    """Pictures and prompt records of a body.

    Raises:
        BodyError: not the bytes that this module's head describes; says what is wrong.
    """
    try:
        tensors = load(body)
        metadata = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]
        header = json.loads(metadata["bicot"])
        if header["format"] != FORMAT:
            raise BodyError(f"format {header['format']!r} is not {FORMAT!r}")
        prompts = [PromptRecord.model_validate(prompt) for prompt in header["prompts"]]
    except SafetensorError as error:
        raise BodyError(f"not a safetensors file: {error}") from error
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise BodyError(f"no bicot request in the file's metadata ({type(error).__name__}: {error})") from error
    except ValidationError as error:
        raise BodyError(f"not a prompt record: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from error
    return [_picture(tensors, index, len(prompts)) for index in range(len(tensors))], prompts


def _picture(tensors: dict[str, np.ndarray], index: int, count: int) -> np.ndarray:
    if len(tensors) != count:
        raise BodyError(f"{len(tensors)} pictures but {count} prompt records")
    picture = tensors.get(f"picture.{index}")
    if picture is None:
        raise BodyError(f"there are {count} tensors, but none named picture.{index}")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise BodyError(f"picture.{index} is {picture.dtype} {list(picture.shape)}, not uint8 [H, W, 3]")
    return picture
