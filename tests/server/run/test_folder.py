"""What a run leaves on disk, and what it refuses to write over."""

import json
import os
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from common.config import Config, compose_config
from common.errors import UserError
from server.run.folder import CONFIG, ROUNDS, SUMMARY, RunFolder


def test_path_is_absolute_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("runs/one")
    monkeypatch.chdir("/")
    assert folder.path == tmp_path / "runs" / "one"
    assert (folder.path / ROUNDS).read_text() == ""
    folder.write("x.bin", b"1")
    assert (tmp_path / "runs" / "one" / "x.bin").read_bytes() == b"1"


def test_rounds_and_summary_are_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    records = [
        {"round": n, "train_loss": {"audio": 1 / (n + 1)}, "rejected": ["line\nbreak", "ünïcode"]}
        for n in range(3)
    ]
    for count, record in enumerate(records, start=1):
        folder.append_round(record)
        lines = (tmp_path / ROUNDS).read_text().splitlines()
        assert [json.loads(line) for line in lines] == records[:count]
    folder.write_summary({"test": {"multimodal": {"corr": 0.25}}, "cleaning": {}})
    text = (tmp_path / SUMMARY).read_text()
    assert json.loads(text) == {"test": {"multimodal": {"corr": 0.25}}, "cleaning": {}}
    assert text.endswith("}\n")


@pytest.mark.parametrize("overrides", [[], ["clients.audio=7", "fusion=mean", "seed=3"]])
def test_configuration_is_written_resolved_and_whole(tmp_path: Path, overrides: list[str]) -> None:
    config = compose_config("config", overrides)
    RunFolder(tmp_path).write_config(config)
    text = (tmp_path / CONFIG).read_text()
    assert "${" not in text
    assert set(yaml.safe_load(text)) == {item.name for item in fields(Config)}
    # What is read back with the schema is the configuration that ran.
    schema = OmegaConf.structured(config)
    assert OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.create(text))) == config


def test_folder_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "flower.log").write_text("x")  # other files are no obstacle
    RunFolder(tmp_path).append_round({"round": 1})
    with pytest.raises(UserError, match=r"holds a run already.*run_dir="):
        RunFolder(tmp_path)
    assert json.loads((tmp_path / ROUNDS).read_text()) == {"round": 1}
    assert (tmp_path / "flower.log").read_text() == "x"


def test_path_through_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"run_dir .*file.* cannot be written") as raised:
            RunFolder(path)
        assert "\n" not in str(raised.value)


def test_old_file_stays_when_writing_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.write("x.bin", b"first")

    def break_off(source: object, target: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(os, "replace", break_off)
        folder.write("x.bin", b"second")
    assert (tmp_path / "x.bin").read_bytes() == b"first"
    folder.write("x.bin", b"2")
    assert (tmp_path / "x.bin").read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.iterdir()) == [ROUNDS, "x.bin"]
