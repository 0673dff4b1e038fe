"""A folder that is there as a whole or not at all."""

import os
from pathlib import Path

import pytest

from common.atomic import atomic_folder
from common.errors import UserError

HOLDS = "manifest.json"


def fill(out: Path, overwrite: bool = False, text: str = "new") -> None:
    with atomic_folder(out, overwrite, HOLDS) as folder:
        assert folder.parent == out.parent
        (folder / HOLDS).write_text(text)
        (folder / "shard").touch(mode=0o600)


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", False, HOLDS) as folder:
        (folder / HOLDS).touch()
        assert not (tmp_path / "out").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        fill(tmp_path / "out")
    finally:
        os.umask(former)
    assert (tmp_path / "out" / "shard").stat().st_mode & 0o777 == 0o640


def test_what_is_there_is_replaced_only_if_asked_and_of_the_same_kind(tmp_path: Path) -> None:
    fill(tmp_path / "out", text="old")
    with pytest.raises(UserError, match="overwrite=true"):
        fill(tmp_path / "out")
    fill(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / HOLDS).read_text() == "new"
    (tmp_path / "out" / HOLDS).unlink()
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        fill(tmp_path / "out", overwrite=True)


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        atomic_folder(tmp_path / "out", False, HOLDS) as folder,
    ):
        (folder / HOLDS).touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with (
        atomic_folder(tmp_path / "out", False, HOLDS),
        pytest.raises(UserError, match="another command"),
    ):
        fill(tmp_path / "out")
    assert (tmp_path / "out").exists()
