"""A file that is there as a whole or not at all."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.atomic import atomic_file, make_readable


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_at_the_end(target: Path) -> None:
    with atomic_file(target) as aside:
        aside.write_bytes(b"new")
        assert aside.parent == target.parent
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == [target.name]


def test_the_old_one_is_there_until_then(target: Path) -> None:
    target.write_bytes(b"old")
    with atomic_file(target) as aside:
        aside.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=1000), st.binary(max_size=1000))
def test_any_content_replaces_any_other(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes
) -> None:
    target = tmp_path_factory.mktemp("any") / "file"
    for content in (old, new):
        with atomic_file(target) as aside:
            aside.write_bytes(content)
        assert target.read_bytes() == content


def test_what_a_killed_process_left_aside_is_written_over(target: Path) -> None:
    with atomic_file(target) as aside:
        aside.write_bytes(b"x")
    aside.write_bytes(b"half of something long")
    with atomic_file(target) as again:
        assert again == aside
        again.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert names(target.parent) == [target.name]


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(1)]
)
def test_whatever_ends_the_block_leaves_the_target(
    target: Path, fault: BaseException, there: bool, written: bool
) -> None:
    if there:
        target.write_bytes(b"old")
    with pytest.raises(type(fault)), atomic_file(target) as aside:
        if written:
            aside.write_bytes(b"half")
        raise fault
    assert names(target.parent) == ([target.name] if there else [])
    assert not there or target.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["chmod", "fsync", "replace"])
def test_a_fault_at_any_step_leaves_the_target(
    target: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="Input/output"), atomic_file(target) as aside:
        aside.write_bytes(b"new")
    assert target.read_bytes() == b"old"
    assert names(target.parent) == [target.name]


def test_a_block_that_writes_nothing_is_an_error(target: Path) -> None:
    target.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), atomic_file(target):
        pass
    assert target.read_bytes() == b"old"


def test_its_bytes_are_on_disk_before_its_name_and_its_name_after(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        fsync(number)
        done.append(Path(f"/proc/self/fd/{number}").resolve().name)

    def replaced(old: Path, new: Path) -> None:
        replace(old, new)
        done.append("renamed")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with atomic_file(target) as aside:
        aside.write_bytes(b"new")
    assert done == [aside.name, "renamed", target.parent.name]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_a_file_that_is_simply_opened(
    target: Path, mask: int, mode: int
) -> None:
    former = os.umask(mask)
    try:
        with atomic_file(target) as aside:
            aside.touch(mode=0o600)
            aside.write_bytes(b"new")
        (target.parent / "opened").write_bytes(b"")
        assert os.umask(mask) == mask  # not changed by asking for it
    finally:
        os.umask(former)
    opened = (target.parent / "opened").stat().st_mode
    assert target.stat().st_mode == opened
    assert opened & 0o777 == mode


def test_a_file_is_made_readable(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o600)
    former = os.umask(0o027)
    try:
        make_readable(file)
    finally:
        os.umask(former)
    assert file.stat().st_mode & 0o777 == 0o640
