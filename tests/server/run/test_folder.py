"""What a run leaves on disk, and what it refuses to write over."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
from data_checks import files
from tiny_runs import tiny

from common.errors import UserError
from server.app import prepare
from server.run.folder import ROUNDS, SUMMARY, RunFolder


def test_path_is_absolute_wherever_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("runs/one")
    monkeypatch.chdir("/")
    folder.write("x.bin", b"1")
    assert folder.path == tmp_path / "runs" / "one"
    assert files(folder.path) == {ROUNDS: b"", "x.bin": b"1"}


def test_rounds_and_summary_are_json(tmp_path: Path) -> None:
    folder, rest = RunFolder(tmp_path), {"rejected": ["line\nbreak", "ünïcode"]}
    records = [{"round": n, "train_loss": {"audio": 1 / (n + 1)}, **rest} for n in range(3)]
    for count, record in enumerate(records, start=1):
        folder.append_round(record)
        lines = (tmp_path / ROUNDS).read_text().splitlines()
        assert [json.loads(line) for line in lines] == records[:count]
    folder.write_summary({"test": {"multimodal": {"corr": 0.25}}, "cleaning": {}})
    text = (tmp_path / SUMMARY).read_text()
    assert json.loads(text) == {"test": {"multimodal": {"corr": 0.25}}, "cleaning": {}}
    assert text.endswith("}\n")


def test_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "flower.log").write_text("x")  # other files are no obstacle
    RunFolder(tmp_path).append_round({"round": 1})
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"holds a run already.*run_dir="):
        RunFolder(tmp_path)
    assert files(tmp_path) == before


def test_path_through_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"run_dir .*file.* cannot be written") as raised:
            RunFolder(path)
        assert "\n" not in str(raised.value)


def no_room(source: object, target: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_old_file_stays_when_writing_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.write("x.bin", b"first")
    why = "No space left on device; free some space, or choose another place"
    said = re.escape(f"{tmp_path}/x.bin cannot be written: {why}")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=f"^{said}$"):
        patch.setattr(os, "replace", no_room)
        folder.write("x.bin", b"second")
    assert files(tmp_path) == {ROUNDS: b"", "x.bin": b"first"}


def test_full_disk_leaves_the_folder_to_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("tracking=none")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(os, "replace", no_room)
        prepare(config, tmp_path)
    assert files(tmp_path) == {}
    prepare(config, tmp_path)
