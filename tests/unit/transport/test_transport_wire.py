"""The wire format: what goes in comes out, and bytes that nobody packed raise WireError and nothing else."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from policy.prompts import CountInfo, PromptRecord, SpatialInfo
from transport.errors import WireError
from transport.trajectory import ImageSegment, Member, SemanticSegment, TrajectoryGroup
from transport.wire import VERSION, pack, unpack

RECORD = PromptRecord(
    prompt="дві rüben 🥕 under a 椅子",
    task_type="spatial",
    nouns=("rüben", "椅子"),
    attr_nouns=("a red rübe",),
    spatial_info=SpatialInfo(obj1="rüben", obj2="椅子", locality="under"),
    numeracy_info=(CountInfo(obj_name="rüben", num=2),),
    family="relation",
)


def semantic(tokens: int = 4, **changes: Any) -> SemanticSegment:
    return dataclasses.replace(
        SemanticSegment(
            prompt_ids=torch.tensor([1, 100_000, 7]),
            token_ids=torch.arange(tokens),
            logprobs=-torch.rand(tokens),
            temperature=0.9,
            finish_reason="stop",
            weight_version=3,
        ),
        **changes,
    )


def image(tokens: int = 6, **changes: Any) -> ImageSegment:
    return dataclasses.replace(
        ImageSegment(
            prompt_ids=torch.tensor([1, 9, 2**31 - 1]),
            token_ids=torch.arange(tokens) + 50,
            conditional_logprobs=-torch.rand(tokens),
            guided_logprobs=torch.full((tokens,), float("-inf")),
            guidance_scale=5.0,
            temperature=1.0,
            weight_version=4,
        ),
        **changes,
    )


def group(*members: Member) -> TrajectoryGroup:
    return TrajectoryGroup("visit-0/17", 17, 0, RECORD, members)


FULL = group(
    Member(2**63 - 1, semantic(), image(), "ein Möhrchen\n", {"hps": 0.25, "git": None, "orm": -0.0}, b"\x89PNG\0"),
    Member(0, None, image(tokens=3), "", {}, None),
    Member(5, semantic(tokens=0), image(tokens=0), "x", {"hps": 1e-300}, b""),
)


def same(left: Any, right: Any) -> bool:
    """Whether two dataclass trees are equal, tensors bit by bit with their dtype."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if dataclasses.is_dataclass(left):
        return type(left) is type(right) and all(
            same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left)
        )
    return bool(left == right)


def sealed(head: bytes, payload: bytes) -> bytes:
    """A header and a payload with a prelude that fits them, so that only their content can be refused."""
    body = struct.pack(">I", len(head)) + head + payload
    return struct.pack(">4sHI", b"BCTG", VERSION, zlib.crc32(body)) + body


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the payload of packed bytes."""
    (length,) = struct.unpack_from(">I", data, 10)
    return json.loads(data[14 : 14 + length]), data[14 + length :]


PACKED = pack(FULL)


def test_everything_comes_back() -> None:
    back = unpack(PACKED)
    assert same(back, FULL)
    assert back.members[0].rewards["git"] is None
    assert back.members[1].semantic is None
    assert (back.members[1].png, back.members[2].png) == (None, b"")
    assert pack(back) == PACKED
    assert same(unpack(memoryview(PACKED)), FULL)


def test_a_group_without_members_comes_back() -> None:
    assert same(unpack(pack(group())), group())


def test_strided_tensors_are_written_as_they_read() -> None:
    strided = group(Member(1, None, image(6, token_ids=torch.arange(12)[::2])))
    assert same(unpack(pack(strided)), strided)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (Member(1, None, image(token_ids=torch.zeros(6))), r"member 0: image.token_ids is torch.float32"),
        (Member(1, None, image(prompt_ids=torch.zeros(2, 2, dtype=torch.int64))), r"image.prompt_ids .*\[2, 2\]"),
        (Member(1, None, image(guided_logprobs=torch.zeros(5))), r"image.guided_logprobs .*\[5\].*\[6\]"),
        (Member(1, semantic(logprobs=torch.zeros(4, dtype=torch.float64)), image()), "semantic.logprobs"),
        (Member(1, None, image(prompt_ids=torch.tensor([2**31]))), "beyond int32"),
        (Member(1, None, image(prompt_ids=torch.tensor([-1]))), "negative"),
        (Member(1, None, image(), rewards={"hps": float("nan")}), r"rewards.0.hps: .*finite"),
        (Member(1, None, image(), rewards={"hps": "0.5"}), r"rewards.0.hps"),  # type: ignore[dict-item]
        (Member(1, None, image(), cot="\ud800"), "not Unicode"),
    ],
)
def test_a_group_that_breaks_the_contract_is_refused(member: Member, message: str) -> None:
    with pytest.raises(WireError, match=message):
        pack(group(member))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        pytest.param(PACKED[:13], "13 bytes", id="13 bytes"),
        (b"PK\3\4" + PACKED[4:], "starts with"),
        (PACKED[:4] + b"\0\1" + PACKED[6:], "wire version 1"),
        (PACKED[:-1], "checksum"),
        (PACKED + b"\0", "checksum"),
        (sealed(b"", b"")[:6] + struct.pack(">II", zlib.crc32(b"\xff" * 4), 2**32 - 1), "cut off"),
        (sealed(b"{}", b""), "header: id: Field required"),
        (sealed(b"[" * 10_000, b""), "header"),
        (sealed(b'{"id": 1e999}', b""), "header: id"),
    ],
)
def test_bytes_that_are_no_group_are_named(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        unpack(data)


def test_a_header_must_agree_with_the_arrays() -> None:
    head, payload = opened(PACKED)
    for key, value, message in (
        ("prompt", 2**62, "ids holds"),
        ("prompt", -1, "greater"),
        ("tokens", 7, "ids holds"),
    ):
        changed = json.loads(json.dumps(head))
        changed["image"][key][0] = value
        with pytest.raises(WireError, match=message):
            unpack(sealed(json.dumps(changed).encode(), payload))
    for part, key in (("", "cot"), ("", "has_semantic"), ("semantic", "tokens"), ("image", "temperature")):
        changed = json.loads(json.dumps(head))
        (changed[part] if part else changed)[key].pop()
        with pytest.raises(WireError, match=r"has \d places for \d members"):
            unpack(sealed(json.dumps(changed).encode(), payload))
    for arrays, message in (
        ({"ids": torch.zeros(2)}, "arrays"),
        (load(payload) | {"more": torch.zeros(1)}, "arrays"),
        (load(payload) | {"ids": torch.zeros(3)}, "ids is torch.float32"),
        (load(payload) | {"logprobs": torch.zeros(2, 2)}, "logprobs is"),
        (load(payload) | {"pictures": torch.zeros(99, dtype=torch.uint8)}, "pictures holds 99"),
    ):
        with pytest.raises(WireError, match=message):
            unpack(sealed(json.dumps(head).encode(), save(arrays)))


edits = st.lists(st.tuples(st.integers(0, len(PACKED) - 1), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(edits=edits, cut=st.integers(0, len(PACKED)))
def test_any_damage_raises_wire_error_alone(edits: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(PACKED)
    for at, value in edits:
        data[at] = value
    for damaged in (bytes(data), bytes(data[:cut])):
        if damaged != PACKED:
            with pytest.raises(WireError):
                unpack(damaged)


@settings(max_examples=500, deadline=None)
@given(edits=edits)
def test_damage_under_a_right_checksum_raises_wire_error_or_makes_a_group(edits: list[tuple[int, int]]) -> None:
    data = bytearray(PACKED)
    for at, value in edits:
        data[10 + at % (len(data) - 10)] = value
    data[6:10] = struct.pack(">I", zlib.crc32(data[10:]))
    try:
        damaged = unpack(bytes(data))
    except WireError:
        return
    assert isinstance(damaged, TrajectoryGroup)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_raise_wire_error(data: bytes) -> None:
    for candidate in (data, PACKED[:6] + data, sealed(data, data), sealed(PACKED[14:400], data)):
        with pytest.raises(WireError):
            unpack(candidate)
