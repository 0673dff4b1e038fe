"""The manifest: what is written is read, what is not whole is refused, shards are those listed."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_checks import manifest_of, refusal, run_python

from common.clients import ClientKey
from common.data.manifest import MANIFEST, read_manifest, write_manifest
from common.data.shards import VERSION
from common.task import Task


def refused(folder: Path, *words: object) -> str:
    return refusal(lambda: read_manifest(folder), folder, *words)


def write(folder: Path, content: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """What the file of a whole manifest says."""
    write_manifest(tmp_path, manifest_of("audio-0", "test"))
    found: dict[str, Any] = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    return found


def test_what_is_written_is_read_and_written_again_to_the_byte(tmp_path: Path) -> None:
    manifest = manifest_of("vision-0", "audio-0", "validation", "test")
    write_manifest(tmp_path, manifest)
    again = read_manifest(tmp_path)
    assert again == manifest
    assert type(again.task) is Task
    assert list(again.modalities) == ["vision", "audio"]
    assert list(again.shards) == list(manifest.shards)
    before = (tmp_path / MANIFEST).read_bytes()
    write_manifest(tmp_path, again)
    assert (tmp_path / MANIFEST).read_bytes() == before
    text = before.decode()
    assert "größe" in text and len(text.splitlines()) > 20  # people read it
    assert text.endswith("}\n")


COPY = """
from common.data.manifest import read_manifest, write_manifest
write_manifest(Path(sys.argv[2]), read_manifest(Path(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sets a locale as Linux does")
def test_the_locale_does_not_change_the_bytes(tmp_path: Path) -> None:
    """In a locale that is not UTF-8, as of an old server, text files are another encoding."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    write_manifest(here, manifest_of("audio-0"))
    run_python(COPY, here, there, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (there / MANIFEST).read_bytes() == (here / MANIFEST).read_bytes()


def test_a_folder_that_is_missing_or_was_not_finished_is_refused(tmp_path: Path) -> None:
    assert f"utmp-prepare out={tmp_path / 'shards'}" in refused(tmp_path / "shards")
    refused(tmp_path, MANIFEST, "preparation did not end")
    (tmp_path / "shards").write_text("x")
    assert "is not a folder of shards" in refused(tmp_path / "shards")
    (tmp_path / MANIFEST).mkdir()
    assert f"{tmp_path / MANIFEST} cannot be read" in refused(tmp_path)


def test_every_truncation_and_damage_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    whole = (tmp_path / MANIFEST).read_bytes().rstrip()
    for length in range(len(whole)):
        (tmp_path / MANIFEST).write_bytes(whole[:length])
        refused(tmp_path, f"{tmp_path / MANIFEST} cannot be read")
    for damaged in (b"\xff\xfe\x00", b'{"version": 1} {}', b'{"a": ' + b"[" * 100_000):
        (tmp_path / MANIFEST).write_bytes(damaged)
        refused(tmp_path, f"{tmp_path / MANIFEST} cannot be read")


@pytest.mark.parametrize("version", [0, VERSION + 1, None, "1", [1]])
def test_another_version_is_refused(
    tmp_path: Path, content: dict[str, Any], version: object
) -> None:
    write(tmp_path, content | {"version": version})
    refused(tmp_path, f"of version {version}", f"reads {VERSION}", "utmp-prepare")
    for other in ([], "text", 1, None, {}):
        write(tmp_path, other)
        refused(tmp_path, "of version None")


WRONG: dict[str, list[object]] = {
    "source": [None, 7.5, [["audio", {}]]],
    "task": [None, 7.5, "translation", ["regression"]],
    "outputs": [None, "many", [1], float("nan"), float("inf")],
    "label_names": [None, 7.5, "joy"],
    "modalities": [None, 7.5, [["audio", {}]]],
    "sides": [None, 7.5],
    "settings": [None, 7.5],
    "cleaning": [None, 7.5],
    "warnings": [None, 7.5, "careful"],
    "shards": [None, {"audio-0.safetensors": None}, {"audio-0.safetensors": "seal"}],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_missing_key_and_a_value_of_the_wrong_type_are_named(
    tmp_path: Path, content: dict[str, Any], key: str
) -> None:
    without = {name: value for name, value in content.items() if name != key}
    for damaged in (without, *(content | {key: value} for value in WRONG[key])):
        write(tmp_path, damaged)
        refused(tmp_path, f"{tmp_path / MANIFEST} is damaged: {key}")
    write(tmp_path, content | {"colour": "blue"})  # of a later release
    assert read_manifest(tmp_path) == manifest_of("audio-0", "test")


def test_clients_come_by_modality_in_order_then_by_number() -> None:
    names = ("a1_", "größe")
    listed = [f"{name}-{part}" for part in (11, 2, 0, 10, 1, 9) for name in names]
    modalities: dict[str, Any] = {"größe": {}, "a1_": {}}
    manifest = manifest_of("test", *listed, "validation", modalities=modalities)
    expected = [ClientKey(name, part) for name in modalities for part in (0, 1, 2, 9, 10, 11)]
    assert manifest.clients() == expected
    none = manifest_of("validation", "test", "audio", "audio-", "audio-x", "smell-0", "-0")
    assert none.clients() == []
    assert replace(none, shards={"audio-0.npz": {"seal": ""}}).clients() == []


@pytest.mark.parametrize(
    ("name", "seal", "problem"),
    [
        ("audio-0", "f" * 64, "lists other contents for"),
        ("test", "", "lists other contents for"),
        # What is swapped would be trained on as another client's.
        ("audio-0", "audio-1" * 2, "lists other contents for"),
        ("audio-2", "f" * 64, "does not list"),
        ("no-seal", "f" * 64, "lists other contents for"),
    ],
)
def test_other_shards_are_refused(tmp_path: Path, name: str, seal: str, problem: str) -> None:
    manifest = manifest_of("audio-0", "audio-1", "test")
    shards = {**manifest.shards, "no-seal.safetensors": {"items": 1}}
    path = tmp_path / f"{name}.safetensors"
    words = f"{tmp_path / MANIFEST} {problem} {path.name}", "different preparations"
    refusal(lambda: replace(manifest, shards=shards).check(path, seal), *words)
    for listed, its in (("audio-0", "audio-0"), ("audio-1", "audio-1"), ("ours", "audio-1")):
        manifest.check(tmp_path / f"{listed}.safetensors", its * 2)  # also under another name
