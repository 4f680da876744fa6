"""Groups kept as files: they come back as they were, old steps make room, and a damaged file is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from learner_cases import random_groups

from policy.janus import Policy
from transport.errors import WireError
from transport.group_files import GroupFiles
from transport.trajectory import TrajectoryGroup
from transport.wire import pack


@pytest.fixture(scope="module")
def groups(tiny_policy: Policy) -> list[TrajectoryGroup]:
    return random_groups(tiny_policy, groups=3, members=3)


def test_groups_come_back_in_the_order_of_their_index(groups: list[TrajectoryGroup], tmp_path: Path) -> None:
    files = GroupFiles(tmp_path / "groups")
    for group in reversed(groups):
        files.write(7, group)
    assert [pack(group) for group in files.read(7)] == [pack(group) for group in groups]
    assert files.steps() == [7] and files.count(7) == 3
    assert files.read(8) == [] and files.count(8) == 0


def test_a_group_drawn_again_takes_its_own_place(groups: list[TrajectoryGroup], tmp_path: Path) -> None:
    files = GroupFiles(tmp_path)
    for _ in range(2):
        written = files.write(1, groups[0])
    assert files.count(1) == 1
    assert [path.name for path in written.parent.iterdir()] == ["00000000.group"]  # no draft is left


def test_old_steps_make_room_and_later_ones_are_taken_back(groups: list[TrajectoryGroup], tmp_path: Path) -> None:
    files = GroupFiles(tmp_path)
    for step in range(1, 13):
        files.write(step, groups[0])
    files.drop_before(9)
    assert files.steps() == [9, 10, 11, 12]
    files.drop_after(10)
    assert files.steps() == [9, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000009", "step-000010"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:20] + b"?" + data[21:], lambda _: b""])
def test_a_damaged_file_is_named(damage, groups: list[TrajectoryGroup], tmp_path: Path) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    files = GroupFiles(tmp_path)
    files.write(2, groups[0])
    file = files.write(2, groups[1])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(WireError, match=r"step-000002/00000001\.group cannot be read: "):
        files.read(2)


def test_other_folders_are_no_steps(tmp_path: Path) -> None:
    for name in ("step-²", "step-00000²", "step-1", f"step-{'9' * 200}", "step-000003"):
        (tmp_path / name).mkdir()
    assert GroupFiles(tmp_path).steps() == [3]


def test_no_folder_is_no_steps(tmp_path: Path) -> None:
    files = GroupFiles(tmp_path / "none")
    assert files.steps() == []
    files.drop_before(5)
    assert not (tmp_path / "none").exists()
