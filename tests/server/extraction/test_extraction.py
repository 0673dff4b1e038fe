"""A run of `utmp-extract`: folders and tables, names of every kind, bad files, runs that stop."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import files, refusal
from recordings import tone, write_wav

from common.config import ExtractConfig, compose
from common.data.extractor import FILE
from common.data.formats.registry import read_source
from common.data.source import ReadSettings, Source
from server.extraction import extraction
from server.extraction.extraction import Extracted, extract
from server.extraction.method import Loaded, Recording

#: Names that a file may have, and that no table, archive, console or spreadsheet may stumble over.
NAMES = [
    "values",
    "ids",
    "offsets",
    "=HYPERLINK(A1)",
    "-rf",
    "@a",
    "[red]b",
    'a "quoted", name; here',
    "two\nlines\r",
    "\x1b[2J",
    "über 文字 🎉",
    "a.b",
    "%s{0}$HOME",
]


def run(out: Path, source: Path, *given: str, **watched: Any) -> Extracted:
    settings = ["modality=audio", f"source={source}", f"out={out}", *given]
    config = compose(ExtractConfig, settings)
    return extract(config, *config.modalities, watched.get("watch", lambda *_: None))


def read(folder: Path, **settings: Any) -> Source:
    return read_source([folder], "auto", ReadSettings(max_seq_len=None, **settings))[0]


def table(folder: Path) -> list[dict[str, str]]:
    """Read a table whose numbers may have a decimal comma, or not."""
    text = (folder / "items.csv").read_text()
    delimiter = ";" if ";" in text.partition("\n")[0] else ","
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Four recordings, of one, two, three and four tenths of a second."""
    folder = tmp_path / "sounds"
    (folder / "b").mkdir(parents=True)
    for number, name in enumerate(["a.wav", "b/a.WAV", "b/c.wav", "d.wav"], 1):
        write_wav(folder / name, tone(seconds=number / 10))
    (folder / "notes.pdf").touch()
    (folder / ".hidden.wav").touch()
    return folder


@pytest.fixture
def calls(sounds: Path) -> Path:
    """A table of them with texts and labels."""
    rows = [
        "no;file;text;rating;id",
        *(
            f"{n};{f};I say {n};{n},5;i{n}"
            for n, f in enumerate(["a.wav", "b/a.WAV", "b/c.wav", "d.wav"])
        ),
    ]
    path = sounds / "calls.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_folder_becomes_a_table_and_arrays(tmp_path: Path, sounds: Path) -> None:
    done = run(tmp_path / "out", sounds, "audio.step=0.1")
    assert sorted(files(tmp_path / "out")) == ["audio.npz", FILE, "items.csv"]
    assert (done.width, list(done.lengths), done.others, done.bad) == (53, [2, 3, 4, 5], 1, {})
    assert [row["id"] for row in table(tmp_path / "out")] == ["a", "b/a", "b/c", "d"]
    said = json.loads((tmp_path / "out" / FILE).read_text())["audio"]
    assert (said["name"], said["hash"]) == ("log-mel+mfcc", done.extractor.hash)
    assert said["settings"]["step"] == 0.1
    with np.load(tmp_path / "out" / "audio.npz") as arrays:
        assert arrays["ids"].tolist() == ["a", "b/a", "b/c", "d"]
        assert arrays["offsets"].tolist() == [0, 2, 5, 9, 14]
        assert arrays["values"].shape == (14, 53) and arrays["values"].dtype == np.float32


def test_equal_recordings_give_equal_bytes(tmp_path: Path, sounds: Path) -> None:
    run(tmp_path / "one", sounds)
    run(tmp_path / "two", sounds)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_columns_of_a_table_are_copied_and_read(tmp_path: Path, calls: Path) -> None:
    run(tmp_path / "out", calls)
    content = (tmp_path / "out/items.csv").read_text()
    assert content.splitlines()[:2] == ["id;no;rating", "i0;0;0,5"]  # no text, no file
    source = read(tmp_path / "out", labels=("rating",), group="no")
    assert source.items.ids.tolist() == ["i0", "i1", "i2", "i3"]
    assert source.items.labels.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert source.extractors == {"audio": "log-mel+mfcc 1 (d17b972d5866)"}


def test_a_second_modality_joins_the_folder(tmp_path: Path, calls: Path) -> None:
    out = tmp_path / "out"
    run(out, calls)
    sound = (out / "audio.npz").read_bytes()
    assert run(out, calls, "modality=language").width == 256
    source = read(out, labels=("rating",))
    assert list(source.items.sequences) == ["audio", "language"]
    assert source.items.present().all() and len(source.items) == 4
    assert source.extractors.keys() == {"audio", "language"}
    assert (out / "audio.npz").read_bytes() == sound
    # Other labels of the same items are a mistake.
    calls.write_text(calls.read_text().replace("1,5", "9,5"))
    before = files(out)
    message = refusal(lambda: run(out, calls, "overwrite=true"))
    assert "item 'i1' has rating='1,5', and the source '9,5'" in message
    assert files(out) == before


def test_a_table_without_ids_is_named_after_its_files_or_numbered(tmp_path: Path) -> None:
    write_wav(tmp_path / "x.wav", tone())
    path = tmp_path / "calls.tsv"
    path.write_text("recording\tsaid\tlabel\nx.wav\thello\t1\n")
    run(tmp_path / "a", path, "file_column=recording", "text.column=said")
    assert table(tmp_path / "a") == [{"id": "x", "label": "1"}]
    run(tmp_path / "b", path, "modality=language", "file_column=recording", "text.column=said")
    assert table(tmp_path / "b") == [{"id": "0", "label": "1"}]
    refusal(
        lambda: run(tmp_path / "c", path, "modality=language"),
        "has no column for file_column=file or text.column=text; it has recording, said, label",
    )


def test_names_of_every_kind(tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number, name in enumerate(NAMES, 1):
        write_wav(folder / f"{name}.wav", tone(seconds=number / 10))
    write_wav(Path(os.fsdecode(os.fsencode(folder) + b"/\xff.wav")), tone())
    assert run(tmp_path / "out", folder, "audio.step=0.1").bad == {}
    source = read(tmp_path / "out", predicting=True)
    ids, lengths = source.items.ids.tolist(), source.items.sequences["audio"].lengths
    assert len(ids) == len(NAMES) + 1
    assert all(name.isprintable() and name[0] not in "=+-@" for name in ids)
    steps = dict(zip(ids, lengths.tolist(), strict=True))
    assert (steps["values"], steps["ids"], steps["_HYPERLINK(A1)"], steps["a.b"]) == (2, 3, 5, 13)
    assert steps['a "quoted", name; here'] == 9 and steps[r"two\nlines\r"] == 10


def test_a_folder_of_features_inside_of_the_recordings_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    for given in ([], ["overwrite=true"]):
        assert list(run(tmp_path / "out", tmp_path, "modality=language", *given).bad) == ["b.txt"]
        assert table(tmp_path / "out") == [{"id": "a"}]


def test_two_files_of_one_id_are_refused(tmp_path: Path, sounds: Path) -> None:
    write_wav(sounds / "d.mp3", tone())
    message = refusal(lambda: run(tmp_path / "out", sounds))
    assert message == "d.mp3 and d.wav have the same id, 'd'; rename one"


# Bad files ---------------------------------------------------------------------------------------


def test_bad_files_are_left_out_and_listed(tmp_path: Path, calls: Path) -> None:
    out, folder = tmp_path / "out", calls.parent
    (folder / "a.wav").write_bytes(b"no sound")
    (folder / "d.wav").unlink()
    (folder / "d.wav").mkdir()
    calls.write_text(calls.read_text() + "4;;no file;1;i4\n5;nowhere.wav;x;1;i5\n")
    calls.write_text(f"{calls.read_text()}7;a.wav;long;1;{'i' * 1001}\n")
    os.mkfifo(folder / "pipe.wav")
    calls.write_text(calls.read_text() + "6;pipe.wav;x;1;i6\n")
    done = run(out, calls)
    assert [row["id"] for row in table(out)] == ["i1", "i2"]
    lines = (out / "audio-unreadable.txt").read_text().splitlines()
    assert sorted(lines) == [
        "a.wav: is damaged, or no recording: Invalid data found when processing input",
        "d.wav: is no file",
        "data row 5: has no file",
        "data row 7: has no id of 1 to 1000 characters",
        "nowhere.wav: No such file or directory; check how it is spelt",
        "pipe.wav: is no file",
    ]
    assert len(done.bad) == 6
    # Repaired, they are there, and nothing is listed.
    write_wav(folder / "a.wav", tone())
    calls.write_text("\n".join(calls.read_text().splitlines()[:4]) + "\n")
    assert run(out, calls, "overwrite=true").bad == {}
    assert sorted(files(out)) == ["audio.npz", FILE, "items.csv"]
    assert len(table(out)) == 3


def test_where_nothing_can_be_used_there_is_no_folder(tmp_path: Path, sounds: Path) -> None:
    for path in sounds.rglob("*.[wW][aA][vV]"):
        path.write_bytes(b"no sound")
    message = refusal(lambda: run(tmp_path / "out", sounds))
    assert message.startswith(f"none of 4 recordings of source={sounds} can be used, as a.wav: is ")
    assert [path.name for path in tmp_path.iterdir()] == ["sounds"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["source=nowhere"], "nowhere does not exist"),
        (["source=empty"], "empty is empty; expected data"),
        (["source=a.pdf"], "source=a.pdf: expected a folder of recordings, or a table (.csv, .tsv"),
        (["source=pdfs"], "source=pdfs has no audio (.wav, .flac, .mp3, "),
        (["source=pdfs", "modality=language"], "source=pdfs has no text (.txt)"),
        (["source=pdfs", "modality=two words", "kind=audio"], "'two words'"),
        (["source=pdfs", "modality=Labels", "kind=audio"], "modality=Labels means something else"),
        (["source=pdfs", "modality=Labels"], "modality=Labels: what is it? Give kind=text, "),
        (["out=pdfs"], "out=pdfs exists already and holds no extractor.json".replace("=", "=/", 1)),
        (["out=a.pdf"], "exists already and holds no extractor.json"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "pdfs"):
        Path(name).mkdir()
    for name in ("a.pdf", "pdfs/a.pdf"):
        Path(name).write_bytes(b"%PDF")
    before = files(tmp_path)
    message = refusal(lambda: run(tmp_path / "out", sounds, *given))
    assert words.replace("=/", f"={tmp_path}/") in message
    assert files(tmp_path) == before


# Runs that stop ----------------------------------------------------------------------------------


class StopError(Exception):
    """As Ctrl-C."""


def stopping(after: int) -> Callable[[int, int], None]:
    def watch(done: int, _: int) -> None:
        if done == after:
            raise StopError

    return watch


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of what is extracted, in order."""
    ids: list[str] = []
    method = extraction.METHODS["audio"]

    def load(config: ExtractConfig) -> Loaded:
        loaded = method.load(config)

        def note(recording: Recording) -> Any:
            ids.append(recording.id)
            return loaded.extract(recording)

        return Loaded(loaded.extractor, note)

    counted = type(method)(method.suffixes, load)
    monkeypatch.setattr(extraction, "METHODS", {"audio": counted})
    return ids


def test_a_run_that_stopped_goes_on(tmp_path: Path, sounds: Path, extracted: list[str]) -> None:
    out = tmp_path / "features/out"
    with pytest.raises(StopError):
        run(out, sounds, watch=stopping(2))
    assert not out.exists() and extracted == ["a", "b/a"]
    # A part that the disk damaged, and a file that changed meanwhile, count for nothing.
    first, second = sorted((tmp_path / "features").rglob("*.npy"))
    first.write_bytes(first.read_bytes()[:-9])
    done = run(out, sounds)
    assert done.resumed == 1 and len(extracted) == 5
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    run(tmp_path / "whole", sounds)
    assert files(out) == files(tmp_path / "whole")
    assert second.exists() is False


def test_what_changed_is_extracted_again(
    tmp_path: Path, sounds: Path, extracted: list[str]
) -> None:
    for given in ([], ["audio.step=0.1"]):
        with pytest.raises(StopError):
            run(tmp_path / "out", sounds, *given, watch=stopping(2))
    assert extracted == ["a", "b/a"] * 2
    write_wav(sounds / "a.wav", tone(220, 2))
    assert run(tmp_path / "out", sounds).resumed == 1
    assert extracted[4:] == ["a", "b/c", "d"]


def test_a_disk_that_is_full_ends_the_run_and_spoils_nothing(
    tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("_write_part", "write_arrays"):
        with monkeypatch.context() as patch:
            patch.setattr(extraction, place, full)
            with pytest.raises((OSError, extraction.UserError), match="No space left"):
                run(tmp_path / "out", sounds)
        assert not (tmp_path / "out").exists()
    assert run(tmp_path / "out", sounds).resumed == 4


def test_two_runs_at_once_and_a_run_that_is_complete(tmp_path: Path, sounds: Path) -> None:
    out = tmp_path / "out"

    def another(done: int, _: int) -> None:
        if done == 1:
            refusal(lambda: run(out, sounds), "another command is writing it")

    run(out, sounds, watch=another)
    refusal(lambda: run(out, sounds), f"out={out} has audio already; choose another, or give over")
    assert run(out, sounds, "overwrite=true", "audio.mfcc=0").width == 40
