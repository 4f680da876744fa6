"""A trajectory group as bytes: a fixed prelude, a JSON header, and three safetensors arrays. No pickle.

    "BCTG" | version u16 | CRC-32 u32 of all that follows | header bytes u32 | JSON header | safetensors

The arrays are the group's token ids (int32, on the wire only), its log-probs (float32) and its pictures (uint8, PNG
bytes): semantic segments first, then images, each kind in the members' order, end to end. The header has their
lengths, the prompt record, and every scalar, in columns: one list per field, not one object per member. A separate
tensor or object costs more than its bytes, so there are few arrays and lists.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

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
VERSION = 2
_PRELUDE = struct.Struct(">4sHII")
_DTYPES = {"ids": torch.int32, "logprobs": torch.float32, "pictures": torch.uint8}
_INT32_MAX = 2**31 - 1


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Segments(_Wire):
    """The segments of one kind, of the members that have it; `prompt` and `tokens` are lengths."""

    prompt: tuple[NonNegativeInt, ...]
    tokens: tuple[NonNegativeInt, ...]
    temperature: tuple[FiniteFloat, ...]
    weight_version: tuple[int, ...]


class _SemanticSegments(_Segments):
    finish_reason: tuple[str, ...]


class _ImageSegments(_Segments):
    guidance_scale: tuple[FiniteFloat, ...]


class _Header(_Wire):
    """`seed` to `png` have one entry per member; `png` is a length."""

    id: str = Field(min_length=1)
    index: int
    visit: int
    prompt: PromptRecord
    seed: tuple[int, ...]
    cot: tuple[str, ...]
    rewards: tuple[dict[str, FiniteFloat | None], ...]
    png: tuple[NonNegativeInt | None, ...]
    has_semantic: tuple[bool, ...]
    semantic: _SemanticSegments
    image: _ImageSegments


def pack(group: TrajectoryGroup) -> bytes:
    """The bytes of a group.

    Raises:
        WireError: a tensor of another dtype or length than `trajectory` documents, an id beyond int32, a reward or a
            scalar that is not finite (a missing reward is None), text that is not Unicode.
    """
    members = group.members
    semantics = [member.semantic for member in members if member.semantic is not None]
    images = [member.image for member in members]
    ids = [row for semantic in semantics for row in (semantic.prompt_ids, semantic.token_ids)]
    ids += [row for image in images for row in (image.prompt_ids, image.token_ids)]
    logprobs = [semantic.logprobs for semantic in semantics]
    logprobs += [row for image in images for row in (image.conditional_logprobs, image.guided_logprobs)]
    lengths, first = [row.numel() for row in ids], 2 * len(semantics)
    scored = lengths[1:first:2] + [length for length in lengths[first + 1 :: 2] for _ in range(2)]
    if not (_are_rows(ids, torch.int64) and _are_rows(logprobs, torch.float32, scored)):
        raise _misfit(group)
    columns = {
        "id": group.id,
        "index": group.index,
        "visit": group.visit,
        "prompt": group.prompt,
        "seed": tuple([member.seed for member in members]),
        "cot": tuple([member.cot for member in members]),
        "rewards": tuple([member.rewards for member in members]),
        "png": tuple([None if member.png is None else len(member.png) for member in members]),
        "has_semantic": tuple([member.semantic is not None for member in members]),
        "semantic": {
            **_columns(semantics, lengths[:first]),
            "finish_reason": tuple([semantic.finish_reason for semantic in semantics]),
        },
        "image": {
            **_columns(images, lengths[first:]),
            "guidance_scale": tuple([image.guidance_scale for image in images]),
        },
    }
    try:
        head = _Header.model_validate(columns).model_dump_json(exclude_defaults=True).encode()
    except ValidationError as error:
        raise WireError(f"group {group.id!r}: {_first(error)}") from error
    except PydanticSerializationError as error:  # a lone surrogate
        raise WireError(f"group {group.id!r}: text that is not Unicode ({error})") from error
    wide = _joined(ids, torch.int64).numpy()
    if wide.view(np.uint64).max(initial=0) > _INT32_MAX:  # negative ones are huge then
        raise WireError(f"group {group.id!r}: a token id is negative or beyond int32")
    arrays = {
        "ids": wide.astype(np.int32),
        "logprobs": _joined(logprobs, torch.float32).numpy(),
        "pictures": np.frombuffer(b"".join([member.png for member in members if member.png]), dtype=np.uint8),
    }
    body = b"".join((struct.pack(">I", len(head)), head, save(arrays)))
    return struct.pack(">4sHI", MAGIC, VERSION, zlib.crc32(body)) + body


def unpack(data: bytes | memoryview) -> TrajectoryGroup:
    """The group that `pack` wrote. Its log-probs are views of one array, its token ids of another.

    Raises:
        WireError: `data` is not such a group; names the fault.
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
    _check_columns(header)
    return _assemble(header, _arrays(bytes(body[head_bytes:])))


def _columns(
    segments: Sequence[SemanticSegment] | Sequence[ImageSegment], lengths: list[int]
) -> dict[str, tuple[float, ...]]:
    """`lengths` alternate between a segment's prompt and its tokens."""
    return {
        "prompt": tuple(lengths[::2]),
        "tokens": tuple(lengths[1::2]),
        "temperature": tuple([segment.temperature for segment in segments]),
        "weight_version": tuple([segment.weight_version for segment in segments]),
    }


def _are_rows(tensors: list[torch.Tensor], dtype: torch.dtype, lengths: list[int] | None = None) -> bool:
    """Whether all have that dtype, one dimension, and the given lengths, if any are given."""
    if not ({tensor.dtype for tensor in tensors} <= {dtype} and {tensor.dim() for tensor in tensors} <= {1}):
        return False
    return lengths is None or [tensor.numel() for tensor in tensors] == lengths


def _joined(rows: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat(rows).detach().cpu() if rows else torch.empty(0, dtype=dtype)


def _misfit(group: TrajectoryGroup) -> WireError:
    """Names the first tensor whose dtype or shape is not the documented one."""
    for position, member in enumerate(group.members):
        for kind, segment in (("semantic", member.semantic), ("image", member.image)):
            if segment is None:
                continue
            for name in segment.__slots__:
                values = getattr(segment, name)
                if name.endswith("_ids"):
                    fits, expected = values.dtype == torch.int64 and values.dim() == 1, "int64 [tokens]"
                elif name.endswith("logprobs"):
                    shape = segment.token_ids.shape
                    fits, expected = values.dtype == torch.float32 and values.shape == shape, f"float32 {list(shape)}"
                else:
                    continue
                if not fits:
                    found = f"{kind}.{name} is {values.dtype} {list(values.shape)}"
                    return WireError(f"group {group.id!r}, member {position}: {found}, expected {expected}")
    raise AssertionError(f"group {group.id!r}: every tensor fits")


def _arrays(payload: bytes) -> dict[str, torch.Tensor]:
    """The three arrays of a payload, as views of safetensors' memory."""
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


def _check_columns(header: _Header) -> None:
    members, semantics = len(header.seed), sum(header.has_semantic)
    whole = {name: getattr(header, name) for name in ("cot", "rewards", "png", "has_semantic")}
    for where, columns, rows in (
        ("", whole, members),
        ("semantic.", vars(header.semantic), semantics),
        ("image.", vars(header.image), members),
    ):
        for name, column in columns.items():
            if len(column) != rows:
                raise WireError(f"header: {where}{name} has {len(column)} places for {rows} members")


def _assemble(header: _Header, arrays: dict[str, torch.Tensor]) -> TrajectoryGroup:
    semantic, image = header.semantic, header.image
    lengths = [*zip(semantic.prompt, semantic.tokens, strict=True), *zip(image.prompt, image.tokens, strict=True)]
    ids = _split("ids", arrays["ids"].to(torch.int64), [length for pair in lengths for length in pair])
    scored = [*semantic.tokens, *(length for length in image.tokens for _ in range(2))]
    logprobs = _split("logprobs", arrays["logprobs"], scored)
    pictures = _split("pictures", arrays["pictures"], [length for length in header.png if length is not None])
    semantics = iter([
        SemanticSegment(next(ids), next(ids), next(logprobs), *scalars)
        for scalars in zip(semantic.temperature, semantic.finish_reason, semantic.weight_version, strict=True)
    ])  # fmt: skip
    images = [
        ImageSegment(next(ids), next(ids), next(logprobs), next(logprobs), *scalars)
        for scalars in zip(image.guidance_scale, image.temperature, image.weight_version, strict=True)
    ]
    thoughts = [next(semantics) if there else None for there in header.has_semantic]
    pngs = [None if length is None else next(pictures).numpy().tobytes() for length in header.png]
    members = map(Member, header.seed, thoughts, images, header.cot, header.rewards, pngs)
    return TrajectoryGroup(header.id, header.index, header.visit, header.prompt, tuple(members))


def _split(name: str, array: torch.Tensor, lengths: list[int]) -> Iterator[torch.Tensor]:
    if sum(lengths) != array.numel():
        raise WireError(f"payload: {name} holds {array.numel()} elements, the header speaks of {sum(lengths)}")
    return iter(array.split_with_sizes(lengths))


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
