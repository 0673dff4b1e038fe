"""Files and folders that are there as a whole or not at all."""

import os
from pathlib import Path

import pytest

from common.atomic import atomic_file, atomic_folder
from common.errors import UserError

HOLDS = "manifest.json"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_file_is_there_until_the_new_one_is_complete(target: Path) -> None:
    # The second time over what a killed process left aside.
    for old, new in ((None, b"one"), (b"one", b"two")):
        with atomic_file(target) as aside:
            aside.write_bytes(new)
            assert aside.parent == target.parent
            assert (target.read_bytes() if target.exists() else None) == old
        assert target.read_bytes() == new
        assert names(target.parent) == [target.name]
        aside.write_bytes(b"half of something long")


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("fault", [OSError(28, "full"), KeyboardInterrupt(), None])
def test_whatever_ends_the_block_leaves_the_target(
    target: Path, fault: BaseException | None, existing: bool, written: bool
) -> None:
    if existing:
        target.write_bytes(b"old")
    # A block that writes nothing is an error, too.
    expected = FileNotFoundError if fault is None else type(fault)
    with pytest.raises(expected), atomic_file(target) as aside:
        if written and fault:
            aside.write_bytes(b"half")
        if fault:
            raise fault
    assert names(target.parent) == ([target.name] if existing else [])
    assert not existing or target.read_bytes() == b"old"


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


def test_bytes_are_on_disk_before_the_name_and_the_name_after(
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
        fill(target.parent / "out")
        assert os.umask(mask) == mask  # not changed by asking for it
    finally:
        os.umask(former)
    for file in (target, target.parent / "out" / "shard"):
        assert file.stat().st_mode & 0o777 == mode


def fill(out: Path, overwrite: bool = False, text: str = "new") -> None:
    existed = out.exists()
    with atomic_folder(out, overwrite, HOLDS) as folder:
        assert folder.parent == out.parent
        (folder / HOLDS).write_text(text)
        (folder / "shard").touch(mode=0o600)
        assert out.exists() == existed


def test_a_folder_is_replaced_only_if_asked_and_of_the_same_kind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, text="old")
    with pytest.raises(UserError, match="overwrite=true"):
        fill(out)
    fill(out, overwrite=True)
    assert (out / HOLDS).read_text() == "new"
    (out / HOLDS).unlink()
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        fill(out, overwrite=True)
    assert names(tmp_path) == ["out"]


def test_a_folder_that_is_not_completed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out", False, HOLDS) as folder:
        (folder / HOLDS).touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_folder(out, False, HOLDS), pytest.raises(UserError, match="another command"):
        fill(out)
    assert names(tmp_path) == ["out"]
