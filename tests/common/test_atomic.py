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


FULL = OSError(28, "No space left on device")

every_place = pytest.mark.parametrize("existing", [True, False])


def test_what_the_block_cannot_read_is_no_fault_of_the_place(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError) as caught,
        atomic_folder(tmp_path / "out", False, HOLDS),
    ):
        (tmp_path / "input").read_bytes()
    assert caught.value.filename == str(tmp_path / "input")
    assert names(tmp_path) == []


@every_place
@pytest.mark.parametrize("step", ["block", "rename"])
@pytest.mark.parametrize("fault", [FULL, UserError("a"), KeyboardInterrupt(), RuntimeError("bug")])
def test_what_breaks_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    step: str,
    existing: bool,
) -> None:
    out, rename = tmp_path / "out", Path.rename
    if existing:
        fill(out, text="old")

    def fail(path: Path, place: Path) -> Path:
        if path.suffix == ".part":  # where there is a former folder, it is aside by now
            raise fault
        return rename(path, place)

    expected = UserError if fault is FULL else type(fault)
    with pytest.raises(expected) as caught, atomic_folder(out, existing, HOLDS) as folder:
        (folder / HOLDS).write_text("half")
        if step == "block":
            raise fault
        monkeypatch.setattr(Path, "rename", fail)
    if fault is FULL:
        why = "No space left on device; free some space, or choose another place"
        assert str(caught.value) == f"out={out} cannot be written: {why}"
    assert names(tmp_path) == ["out"] * existing
    assert not existing or (out / HOLDS).read_text() == "old"


@every_place
def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path, existing: bool) -> None:
    out = tmp_path / "out"
    if existing:
        fill(out, text="old")
    for left in (".out.part", ".out.former"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").touch()
    fill(out, overwrite=existing)
    assert (names(tmp_path), names(out)) == (["out"], [HOLDS, "shard"])
    assert (out / HOLDS).read_text() == "new"


def test_parents_are_made_unless_one_is_a_file_and_late_folders_are_kept(target: Path) -> None:
    fill(target.parent / "deep" / "er")
    target.touch()
    with pytest.raises(UserError, match="cannot be written: "):
        fill(target / "out")
    late = target.parent / "late"
    with pytest.raises(UserError, match="exists already"), atomic_folder(late, False, HOLDS):
        late.mkdir()
        (late / "thesis.tex").touch()
    assert names(late) == ["thesis.tex"]
    assert names(target.parent) == ["deep", "file.bin", "late"]


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_folder(out, False, HOLDS) as folder:
        (folder / HOLDS).touch()
        with pytest.raises(UserError, match=f"^out={out}: another command is writing it$"):
            fill(out)
    assert (names(tmp_path), names(out)) == (["out"], [HOLDS])
