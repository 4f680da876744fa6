"""A trajectory group as bytes: a fixed prelude, a JSON header, and three safetensors arrays. No pickle.

    "BCTG" | version u16 | CRC-32 u32 of all that follows | header bytes u32 | JSON header | safetensors

The arrays are the group's token ids (int32, on the wire only), its log-probs (float32) and its pictures (uint8, PNG
bytes), each of all members end to end; the header holds their lengths, the prompt record, and every scalar. Few large
arrays instead of seven a member, because each tensor of its own costs more than its bytes do.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError
from pydantic_core import PydanticSerializationError
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load

from policy.prompts import PromptRecord
from transport.errors import WireError
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup

MAGIC = b"BCTG"
VERSION = 1
_PRELUDE = struct.Struct(">4sHII")
_DTYPES = {"ids": torch.int32, "logprobs": torch.float32, "pictures": torch.uint8}
_INT32_MAX = 2**31 - 1


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _SemanticHeader(_Wire):
    prompt: NonNegativeInt
    tokens: NonNegativeInt
    temperature: FiniteFloat
    finish_reason: str
    weight_version: int


class _ImageHeader(_Wire):
    prompt: NonNegativeInt
    tokens: NonNegativeInt
    guidance_scale: FiniteFloat
    temperature: FiniteFloat
    weight_version: int


class _MemberHeader(_Wire):
    seed: int
    semantic: _SemanticHeader | None
    image: _ImageHeader
    cot: str
    rewards: dict[str, FiniteFloat | None]
    png: NonNegativeInt | None


class _Header(_Wire):
    id: str = Field(min_length=1)
    index: int
    visit: int
    prompt: PromptRecord
    members: tuple[_MemberHeader, ...]


def pack(group: TrajectoryGroup) -> bytes:
    """The bytes of a group.

    Raises:
        WireError: a tensor of another dtype or length than `trajectory` documents, an id beyond int32, a reward or a
            scalar that is not finite (a missing reward is None), text that is not Unicode.
    """
    ids: list[torch.Tensor] = []
    logprobs: list[torch.Tensor] = []
    pictures: list[bytes] = []
    members = []
    for position, member in enumerate(group.members):
        where = f"group {group.id!r}, member {position}"
        semantic, image = member.semantic, member.image
        if semantic is not None:
            ids += _ids(where, "semantic", semantic)
            logprobs.append(_logprobs(where, "semantic.logprobs", semantic.logprobs, semantic))
        ids += _ids(where, "image", image)
        logprobs.append(_logprobs(where, "image.conditional_logprobs", image.conditional_logprobs, image))
        logprobs.append(_logprobs(where, "image.guided_logprobs", image.guided_logprobs, image))
        if member.png is not None:
            pictures.append(member.png)
        members.append(_member_header(member))
    fields = {"id": group.id, "index": group.index, "visit": group.visit, "prompt": group.prompt}
    try:
        header = _Header.model_validate(fields | {"members": tuple(members)})
        head = header.model_dump_json(exclude_defaults=True).encode()
    except ValidationError as error:
        raise WireError(f"group {group.id!r}: {_first(error)}") from error
    except PydanticSerializationError as error:  # a lone surrogate
        raise WireError(f"group {group.id!r}: text that is not Unicode ({error})") from error
    wide = torch.cat(ids).cpu() if ids else torch.empty(0, dtype=torch.int64)
    if wide.numel() and (int(wide.min()) < 0 or int(wide.max()) > _INT32_MAX):
        raise WireError(f"group {group.id!r}: a token id is negative or beyond int32")
    dense = torch.cat(logprobs).cpu() if logprobs else torch.empty(0)
    arrays = {
        "ids": wide.numpy().astype(np.int32),
        "logprobs": dense.detach().numpy(),
        "pictures": np.frombuffer(b"".join(pictures), dtype=np.uint8),
    }
    body = b"".join((struct.pack(">I", len(head)), head, save(arrays)))
    return struct.pack(">4sHI", MAGIC, VERSION, zlib.crc32(body)) + body


def unpack(data: bytes | memoryview) -> TrajectoryGroup:
    """The group that `pack` wrote. Its log-probs are views of one array, its token ids of another.

    Raises:
        WireError: `data` is anything else; says what is wrong with it.
    """
    view = memoryview(data)
    if len(view) < _PRELUDE.size:
        raise WireError(f"not a trajectory group: {len(view)} bytes, fewer than the {_PRELUDE.size} of a prelude")
    magic, version, checksum, head_bytes = _PRELUDE.unpack_from(view)
    if magic != MAGIC:
        raise WireError(f"not a trajectory group: it starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise WireError(f"wire version {version}, this bicot reads {VERSION}; run all parts from one release")
    if zlib.crc32(view[_PRELUDE.size - 4 :]) != checksum:
        raise WireError("damaged: the checksum does not match")
    body = view[_PRELUDE.size :]
    if head_bytes > len(body):
        raise WireError(f"cut off: a header of {head_bytes} bytes, of which {len(body)} are there")
    try:
        header = _Header.model_validate_json(bytes(body[:head_bytes]))
    except ValidationError as error:
        raise WireError(f"header: {_first(error)}") from error
    return _assemble(header, _arrays(bytes(body[head_bytes:])))


def _member_header(member: Member) -> dict[str, object]:
    semantic, image = member.semantic, member.image
    return {
        "seed": member.seed,
        "semantic": None
        if semantic is None
        else {
            "prompt": semantic.prompt_ids.numel(),
            "tokens": semantic.token_ids.numel(),
            "temperature": semantic.temperature,
            "finish_reason": semantic.finish_reason,
            "weight_version": semantic.weight_version,
        },
        "image": {
            "prompt": image.prompt_ids.numel(),
            "tokens": image.token_ids.numel(),
            "guidance_scale": image.guidance_scale,
            "temperature": image.temperature,
            "weight_version": image.weight_version,
        },
        "cot": member.cot,
        "rewards": member.rewards,
        "png": None if member.png is None else len(member.png),
    }


def _ids(where: str, segment: str, of: SemanticSegment | ImageSegment) -> list[torch.Tensor]:
    for name, ids in (("prompt_ids", of.prompt_ids), ("token_ids", of.token_ids)):
        if ids.dtype != torch.int64 or ids.dim() != 1:
            raise WireError(f"{where}: {segment}.{name} is {ids.dtype} {list(ids.shape)}, expected int64 [tokens]")
    return [of.prompt_ids, of.token_ids]


def _logprobs(where: str, name: str, values: torch.Tensor, of: SemanticSegment | ImageSegment) -> torch.Tensor:
    if values.dtype != torch.float32 or values.shape != of.token_ids.shape:
        raise WireError(
            f"{where}: {name} is {values.dtype} {list(values.shape)}, expected float32 {list(of.token_ids.shape)}"
        )
    return values


def _arrays(payload: bytes) -> dict[str, torch.Tensor]:
    """The three arrays of a payload, over the memory that safetensors read them into."""
    try:
        found = load(payload)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise WireError(f"payload: not safetensors ({error})") from error
    if found.keys() != _DTYPES.keys():
        raise WireError(f"payload: arrays {sorted(found)}, expected {sorted(_DTYPES)}")
    for name, array in found.items():
        if array.dtype != _DTYPES[name] or array.dim() != 1:
            raise WireError(f"payload: {name} is {array.dtype} {list(array.shape)}, expected {_DTYPES[name]} [n]")
    return found


def _assemble(header: _Header, arrays: dict[str, torch.Tensor]) -> TrajectoryGroup:
    id_lengths: list[int] = []
    logprob_lengths: list[int] = []
    picture_lengths: list[int] = []
    for member in header.members:
        if member.semantic is not None:
            id_lengths += (member.semantic.prompt, member.semantic.tokens)
            logprob_lengths.append(member.semantic.tokens)
        id_lengths += (member.image.prompt, member.image.tokens)
        logprob_lengths += (member.image.tokens, member.image.tokens)
        if member.png is not None:
            picture_lengths.append(member.png)
    ids = _split("ids", arrays["ids"].to(torch.int64), id_lengths)
    logprobs = _split("logprobs", arrays["logprobs"], logprob_lengths)
    pictures = _split("pictures", arrays["pictures"], picture_lengths)
    members = tuple(_member(member, ids, logprobs, pictures) for member in header.members)
    return TrajectoryGroup(header.id, header.index, header.visit, header.prompt, members)


def _split(name: str, array: torch.Tensor, lengths: list[int]) -> Iterator[torch.Tensor]:
    if sum(lengths) != len(array):
        raise WireError(f"payload: {name} holds {len(array)} elements, the header speaks of {sum(lengths)}")
    return iter(array.split(lengths))


def _member(
    header: _MemberHeader,
    ids: Iterator[torch.Tensor],
    logprobs: Iterator[torch.Tensor],
    pictures: Iterator[torch.Tensor],
) -> Member:
    semantic, of = None, header.semantic
    if of is not None:
        semantic = SemanticSegment(
            prompt_ids=next(ids),
            token_ids=next(ids),
            logprobs=next(logprobs),
            temperature=of.temperature,
            finish_reason=of.finish_reason,
            weight_version=of.weight_version,
        )
    image = ImageSegment(
        prompt_ids=next(ids),
        token_ids=next(ids),
        conditional_logprobs=next(logprobs),
        guided_logprobs=next(logprobs),
        guidance_scale=header.image.guidance_scale,
        temperature=header.image.temperature,
        weight_version=header.image.weight_version,
    )
    png = None if header.png is None else next(pictures).numpy().tobytes()
    return Member(header.seed, semantic, image, header.cot, header.rewards, png)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
