"""What of a source is not used is told, in the one place: each format with something extra."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from common.data.formats.registry import read_source
from common.data.source import ReadSettings
from tests.common.data.formats import writers
from tests.common.data.formats.writers import MODALITIES, make_utterances

UTTERANCES = make_utterances(3)
COUNT = len(UTTERANCES)
REST = ("language", "audio")


def told(path: Path | list[Path], **options: Any) -> dict[str, int]:
    paths = path if isinstance(path, list) else [path]
    return dict(read_source(paths, "auto", ReadSettings(**options))[0].items.cleaning)


CONTENTS = {
    "multibench": writers.multibench_content,
    "mult": lambda items: writers.mult_content(items, aligned=False),
    "mmsa": lambda items: writers.mmsa_content(items, bert=False),
}


@pytest.mark.parametrize("format", CONTENTS)
def test_pickles(tmp_path: Path, format: str) -> None:
    content: dict[str, Any] = CONTENTS[format](UTTERANCES)
    path = writers.write_pickle(tmp_path / "a.pkl", content, 4)
    # What MMSA writes beside the features.
    before = next((what for what in told(path) if "not used" in what), "keys not used: ")
    assert ("annotations" in before) is (format == "mmsa")
    for split in content.values():
        split["video"] = np.ones((len(split["id"]), 4, 3))
    content["humans"] = [1, 2]
    path = writers.write_pickle(tmp_path / "b.pkl", content, 4)
    (what,) = (what for what in told(path, modalities=REST) if "not used" in what)
    names = what.removeprefix("keys not used: ").split(", ")
    assert names[0] == "humans" and {"video", "vision"} <= {*names}
    assert told(path, modalities=REST)[what] == len(names)
    # An id too many is one that is there twice.
    train = content["train"]
    train["id"][-1] = train["id"][0]
    path = writers.write_pickle(tmp_path / "c.pkl", content, 4)
    assert told(path)["items whose id occurred before, dropped"] == 1
    # To predict, all of that is told as well.
    assert what in told(path, modalities=REST, predicting=True)


def test_computational_sequences(tmp_path: Path) -> None:
    paths = writers.write_csd(tmp_path, UTTERANCES)
    assert not any("not used" in what for what in told(paths))
    name, root = writers.CSD["audio"]
    with h5py.File(tmp_path / name, "r+") as file:
        file[f"{root}/extra"] = np.ones(3)
        file.copy(f"{root}/data/{UTTERANCES[0].name}", file[f"{root}/data"], "other[0]")
    found = told(paths, modalities=("audio",))
    assert found[f"files not used: {paths[0].name}, {paths[2].name}"] == 2
    assert found[f"array not used: extra of {name}"] == 1
    assert found["segments of audio without a label, left out"] == 1


def test_arrays(tmp_path: Path) -> None:
    content = writers.npz_content(UTTERANCES)
    assert not any("not used" in what for what in told(save(tmp_path, content), group="video"))
    counts, offsets = np.ones((COUNT, 3), dtype=int), content["audio_offsets"]
    path = save(tmp_path, content | {"counts": counts, "note": list("ab"), "x_offsets": offsets})
    found = told(path, group="video", modalities=REST)
    names = ["vision", "vision_offsets", "counts", "note", "x_offsets"]
    (what,) = (what for what in found if "not used" in what)
    assert sorted(what.removeprefix("arrays not used: ").split(", ")) == sorted(names)
    assert found[what] == 5
    # Without a group, an array that repeats is offered as one.
    groups = len({item.video for item in UTTERANCES})
    offer = "different values of video repeat across items; dataset.group=video keeps those that "
    assert told(path, prefix="dataset.")[f"{offer}share one on one side"] == groups
    assert not any("repeat" in what for what in told(path, group="video"))


def save(folder: Path, content: dict[str, Any]) -> Path:
    np.savez(folder / "a.npz", **content)
    return folder / "a.npz"


@pytest.mark.parametrize("arrays", ["npz", "npz-by-id", "safetensors"])
def test_tables(tmp_path: Path, arrays: Any) -> None:
    table = writers.write_table(tmp_path, UTTERANCES, arrays=arrays)
    columns = writers.table_columns(UTTERANCES)
    names = ("id", "split", "group", "label")
    columns = {name: column for name, column in columns.items() if name in names}
    writers.write_columns(table, columns)
    assert not any("not used" in what for what in told(table))
    for name in ("gait.mat", "notes.txt", "._audio.mat"):
        (tmp_path / name).touch()
    speakers = [f"s{item % 7}" for item in range(COUNT)]
    more = {"speaker": speakers, "sex": [1, 2] * (COUNT // 2), "age": [0.5] * COUNT}
    writers.write_columns(table, columns | more)
    suffix = "safetensors" if arrays == "safetensors" else "npz"
    found = told(table, modalities=REST)
    assert found["columns not used: speaker, sex, age"] == 3
    assert found[f"files not used: gait.mat, vision.{suffix}"] == 2
    # A column that repeats is offered as the group, where there is none.
    assert not any("repeat" in what for what in found)
    writers.write_columns(table, {n: c for n, c in columns.items() if n != "group"} | more)
    offers = {what: count for what, count in told(table).items() if "repeat" in what}
    assert offers == {
        "different values of speaker repeat across items; group=speaker keeps those that share "
        "one on one side": 7
    }


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_arrays_and_ids_beside_a_table(tmp_path: Path, kind: str) -> None:
    columns = {"id": list("abcd"), "label": [1.0, 2, 3, 4], "group": list("abcd")}
    table = writers.write_columns(tmp_path / "items.csv", columns)
    ids = np.array(list("axy")) if kind == "npz" else np.frombuffer(b"axy", np.uint8)[:, None]
    audio = {"values": np.ones((3, 2)), "ids": ids, "rate": np.array([16000])}
    grip = {"a": np.ones((2, 2)), "b": np.ones((6, 2)), "z": np.ones((2, 2))}
    for name, arrays in {"audio": audio, "grip": grip}.items():
        path = tmp_path / f"{name}.{kind}"
        if kind == "pt":
            torch.save({key: torch.tensor(array) for key, array in arrays.items()}, path)
        else:
            writers.write_arrays(path, arrays)
    np.save(tmp_path / "gait.npy", np.ones((4, 2)))
    assert told(table, max_seq_len=5) == {
        f"array not used: rate of audio.{kind}": 1,
        "ids of audio that the table does not have, left out": 2,
        "ids of grip that the table does not have, left out": 1,
        "items without audio": 3,
        "items without grip": 2,
        "items of grip cut to their last 5 steps (max_seq_len)": 1,
    }


def test_empty_items_are_counted(tmp_path: Path) -> None:
    columns = {"id": list("abc"), "label": [1.0, 2, 3]}
    table = writers.write_columns(tmp_path / "items.csv", columns)
    for name, lengths in (("gait", (0, 2, 2)), ("grip", (0, 0, 2))):
        padded = np.zeros((3, 2, 2))
        for item, steps in enumerate(lengths):
            padded[item, :steps] = 1
        np.save(tmp_path / f"{name}.npy", padded)
    assert told(table) == {
        "items without gait": 1,
        "items without grip": 2,
        "items without any modality": 1,
    }


def test_names_that_are_not_trusted_are_made_printable(tmp_path: Path) -> None:
    content = writers.npz_content(UTTERANCES) | {f"\x1b[2J{'x' * 99}": np.ones(1)}
    content |= {f"more{number}": np.ones(1) for number in range(20)}
    (what,) = (w for w in told(save(tmp_path, content), group="video") if "not used" in w)
    assert what.isprintable() and len(what) < 300 and what.endswith(", …")
    assert set(MODALITIES) & set(what.split(", ")) == set()
