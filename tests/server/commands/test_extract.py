"""`utmp-extract` as a user runs it; what it does is tested in tests/server/extraction."""

import os
import signal
from pathlib import Path

import pytest
from data_checks import files
from forked_command import ForkedCommand, Run
from processes import wait_until
from recordings import tone, write_wav

COMMAND = "utmp-extract"
LOADS = """
import server.extraction.console, server.extraction.extraction, server.terminal
from server.commands.extract import main
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    rows = ["file,text,label"]
    for number, text in enumerate(["I like it", "no", "thank you"]):
        write_wav(tmp_path / f"[b]{number}.wav", tone(seconds=11 if number else 0.5))
        rows.append(f"[b]{number}.wav,{text},{number}")
    path = tmp_path / "calls.csv"
    path.write_text("\n".join([*rows, "[b]nowhere.wav,,1"]) + "\n")
    return path


def test_what_is_printed(loaded: Run, calls: Path, tmp_path: Path) -> None:
    shown = loaded("modality=[audio,language]", "source=calls.csv", "out=features")
    assert shown.shown.splitlines() == [
        "extractor: log-mel+mfcc 1 (d17b972d5866)",
        f"{tmp_path}/features/audio.npz: 3 items, width 53, steps 3-56-56 (least, median, most)",
        "warning: [b]nowhere.wav: No such file or directory; check how it is spelt",
        "warning: 1 of 4 recordings left out; all are listed in "
        f"{tmp_path}/features/audio-unreadable.txt",
        "utmp-prepare keeps the last 50 steps of an item; max_seq_len=56 keeps all",
        "extractor: wordllama 1 (e5eba642b977)",
        f"{tmp_path}/features/language.npz: 3 items, width 256, steps 1-2-3 (least, median, most)",
        "warning: data row 4: has no text",
        "warning: 1 of 4 recordings left out; all are listed in "
        f"{tmp_path}/features/language-unreadable.txt",
        "next, at the coordinator: utmp-prepare path=features out=shards/features split=evaluation",
    ]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([], "source is required; give it as source=…: a folder of files, or a table"),
        (["source=calls.csv"], "out is required; give it as out=…: the folder of features"),
        (["source=nowhere", "out=o", "modality=audio"], "nowhere does not exist"),
        (
            ["source=calls.csv", "out=o", "modality=vision"],
            "video needs a model of pictures: give video.model=MODEL.onnx, which takes float32 of "
            "shape (1, 3, height, width) or (1, height, width, 3), RGB, and returns (1, width)",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    loaded: Run, calls: Path, tmp_path: Path, given: list[str], error: str
) -> None:
    before = sorted(tmp_path.iterdir())
    assert loaded(*given).error == error
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    loaded: Run,
    forked: ForkedCommand,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    (tmp_path / "calls").mkdir()
    for call in range(60):
        write_wav(tmp_path / f"calls/{call}.wav", tone(100 + call, seconds=20))
    given = ("modality=audio", "source=calls")
    process = forked.start(tmp_path, tmp_path_factory.mktemp("killed"), *given, "out=features")
    parts = tmp_path / ".features.audio.extracted"
    wait_until(lambda: len(list(parts.glob("[!.]*.npy"))) >= 5, "some features")
    os.kill(process, signal.SIGKILL)
    assert forked.end().status == -signal.SIGKILL
    assert not (tmp_path / "features").exists()
    again = loaded(*given, "out=features").shown
    assert "of them were there already, of a run that stopped" in again
    loaded(*given, "out=whole")
    assert files(tmp_path / "features") == files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls", "features", "whole"]
