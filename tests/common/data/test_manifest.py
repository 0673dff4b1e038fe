"""The manifest: what is written is read, what is not whole is refused, shards are those listed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.clients import ClientKey
from common.data.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from common.data.shards import VERSION
from common.errors import UserError
from common.task import Task


def manifest_of(*names: str, **changes: Any) -> Manifest:
    """A manifest that lists shards by name; the seal of a shard is its name twice."""
    made = Manifest(
        version=VERSION,
        source={"format": "npz", "why": "", "files": [{"name": "größe.npz", "bytes": 3}]},
        task=Task.multilabel,
        outputs=3,
        label_names=("joy", "größe", '"'),
        modalities={"vision": {"width": 3}, "audio": {"width": 2}},
        sides={"train": {"items": 4}, "validation": {"items": 0}, "test": {"items": 1}},
        settings={"seed": 1, "clients": {"default": None}, "partition": {"alpha": 0.5}},
        cleaning={"items without a label": 2},
        warnings=("two groups are on both sides",),
        shards={f"{name}.safetensors": {"seal": name * 2, "items": 1} for name in names},
    )
    return replace(made, **changes)


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_manifest(folder)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert str(folder) in message
    return message


def write(folder: Path, content: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """What the file of a whole manifest says."""
    write_manifest(tmp_path, manifest_of("audio-0", "test"))
    found: dict[str, Any] = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))
    return found


# Write and read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(Task))
def test_what_is_written_is_read(tmp_path: Path, task: Task) -> None:
    manifest = manifest_of("vision-0", "audio-0", "validation", "test", task=task)
    write_manifest(tmp_path, manifest)
    found = read_manifest(tmp_path)
    assert found == manifest
    assert type(found.task) is Task
    assert list(found.modalities) == ["vision", "audio"]
    assert list(found.shards) == list(manifest.shards)


def test_it_is_json_that_people_can_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest_of("audio-0"))
    text = (tmp_path / MANIFEST).read_text(encoding="utf-8")
    assert "größe" in text
    assert text.endswith("}\n")
    assert len(text.splitlines()) > 20
    assert json.loads(text)["task"] == "multilabel"


def test_equal_manifests_are_equal_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, manifest_of("audio-0", "test"))
        written.append((tmp_path / name / MANIFEST).read_bytes())
    assert written[0] == written[1]
    write_manifest(tmp_path / "one", read_manifest(tmp_path / "two"))
    assert (tmp_path / "one" / MANIFEST).read_bytes() == written[0]


COPY = """
import sys
from pathlib import Path
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
    root = Path(__file__).parents[3]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COPY, str(here), str(there)],
        env=os.environ | plain | {"PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert (there / MANIFEST).read_bytes() == (here / MANIFEST).read_bytes()


# What is not whole ------------------------------------------------------------------------------


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    message = refused(tmp_path / "shards")
    assert f"utmp-prepare out={tmp_path / 'shards'}" in message


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("x")
    assert "is not a folder of shards" in refused(tmp_path / "shards")


def test_a_folder_without_a_manifest_was_not_finished(tmp_path: Path) -> None:
    (tmp_path / "audio-0.safetensors").write_bytes(b"x")
    message = refused(tmp_path)
    assert MANIFEST in message
    assert "preparation did not end" in message
    assert "utmp-prepare" in message


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b'{"version": 1,}', b"\xff\xfe\x00", b'{"version": 1} {}', b"label,audio\n1,2\n"],
)
def test_damaged_json_is_refused(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(damaged)
    assert f"{tmp_path / MANIFEST} cannot be read" in refused(tmp_path)


def test_every_truncation_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    whole = (tmp_path / MANIFEST).read_bytes().rstrip()
    for length in range(len(whole)):
        (tmp_path / MANIFEST).write_bytes(whole[:length])
        assert "cannot be read" in refused(tmp_path)


def test_a_folder_where_the_manifest_should_be(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    assert f"{tmp_path / MANIFEST} cannot be read" in refused(tmp_path)


def test_json_too_deep_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"version": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert f"{tmp_path / MANIFEST}" in refused(tmp_path)


@pytest.mark.parametrize("version", [0, VERSION + 1, None, "1", [1], {}])
def test_another_version_is_refused(
    tmp_path: Path, content: dict[str, Any], version: object
) -> None:
    write(tmp_path, content | {"version": version})
    message = refused(tmp_path)
    assert f"of version {version}" in message
    assert f"reads {VERSION}" in message
    assert "utmp-prepare" in message


@pytest.mark.parametrize("other", [[], [1], "text", 1, None, {}])
def test_json_that_is_no_manifest_is_refused(tmp_path: Path, other: object) -> None:
    write(tmp_path, other)
    assert "of version None" in refused(tmp_path)


KEYS = [
    "source",
    "task",
    "outputs",
    "label_names",
    "modalities",
    "sides",
    "settings",
    "cleaning",
    "warnings",
    "shards",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(tmp_path: Path, content: dict[str, Any], key: str) -> None:
    del content[key]
    write(tmp_path, content)
    assert f"{tmp_path / MANIFEST} is damaged: {key}" in refused(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, None) for key in KEYS),
        *((key, 7.5) for key in KEYS if key != "outputs"),
        *((key, [["audio", {}]]) for key in ("source", "modalities", "sides", "shards")),
        ("task", "translation"),
        ("task", ["regression"]),
        ("outputs", "many"),
        ("outputs", [1]),
        ("outputs", float("nan")),
        ("outputs", float("inf")),
        ("label_names", "joy"),
        ("warnings", "careful"),
        ("shards", {"audio-0.safetensors": None}),
        ("shards", {"audio-0.safetensors": "seal"}),
        ("shards", {"audio-0.safetensors": ["seal"]}),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(
    tmp_path: Path, content: dict[str, Any], key: str, value: object
) -> None:
    write(tmp_path, content | {key: value})
    assert "damaged" in refused(tmp_path)


def test_a_key_of_a_later_release_is_passed_over(tmp_path: Path, content: dict[str, Any]) -> None:
    write(tmp_path, content | {"colour": "blue"})
    assert read_manifest(tmp_path) == manifest_of("audio-0", "test")


# Clients ----------------------------------------------------------------------------------------


def test_clients_come_by_modality_in_order_then_by_number() -> None:
    listed = [f"{name}-{part}" for part in (11, 2, 0, 10, 1, 9) for name in ("audio", "vision")]
    assert manifest_of("test", *listed, "validation").clients() == [
        ClientKey(name, part) for name in ("vision", "audio") for part in (0, 1, 2, 9, 10, 11)
    ]


def test_names_with_underscores_and_digits_are_read() -> None:
    names = ("a", "a_1", "a1_", "_0", "größe")
    manifest = manifest_of(
        *(f"{name}-{part}" for name in names for part in (1, 0)),
        modalities={name: {} for name in names},
    )
    assert manifest.clients() == [ClientKey(name, part) for name in names for part in (0, 1)]


def test_what_is_no_client_is_passed_over() -> None:
    manifest = manifest_of("validation", "test", "audio", "audio-", "audio-x", "smell-0", "-0")
    assert manifest.clients() == []
    assert replace(manifest, shards={"audio-0.npz": {"seal": ""}}).clients() == []


# Shards and manifest ----------------------------------------------------------------------------


def test_the_shards_that_are_listed_are_taken(tmp_path: Path) -> None:
    manifest = manifest_of("audio-0", "audio-1", "test")
    for name in ("audio-0", "audio-1", "test"):
        manifest.check(tmp_path / f"{name}.safetensors", name * 2)


@pytest.mark.parametrize("name", ["audio-0", "test"])
@pytest.mark.parametrize("seal", ["f" * 64, "", "audio-1audio-1"])
def test_other_contents_are_refused(tmp_path: Path, name: str, seal: str) -> None:
    """Also those of another client: what is swapped would be trained on as another's."""
    manifest, path = manifest_of("audio-0", "audio-1", "test"), tmp_path / f"{name}.safetensors"
    with pytest.raises(UserError) as error:
        manifest.check(path, seal)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert f"{tmp_path / MANIFEST} lists other contents for {path.name}" in message
    assert "different preparations" in message


def test_a_shard_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        manifest_of("audio-0").check(tmp_path / "audio-1.safetensors", "f" * 64)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert f"{tmp_path / MANIFEST} does not list audio-1.safetensors" in message


def test_no_shard_fits_a_manifest_without_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not list"):
        manifest_of().check(tmp_path / "audio-0.safetensors", "")


def test_a_renamed_shard_is_known_by_its_seal(tmp_path: Path) -> None:
    manifest_of("audio-0", "audio-1").check(tmp_path / "ours.safetensors", "audio-1" * 2)


def test_a_shard_listed_without_a_seal_fits_nothing(tmp_path: Path) -> None:
    manifest = manifest_of(shards={"audio-0.safetensors": {"items": 1}})
    for name in ("audio-0", "ours"):
        with pytest.raises(UserError):
            manifest.check(tmp_path / f"{name}.safetensors", "f" * 64)
