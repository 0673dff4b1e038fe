"""From recordings and transcripts at two sites to a prediction, by the README's commands alone."""

import csv
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest

from server.model_file import load_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: What is said, and how glad that is, from -2 to 2.
PHRASES = {
    "I love this, thank you so much, what a wonderful day": 2.0,
    "that was good and friendly, I liked it": 1.0,
    "the parcel arrived on Tuesday at noon": 0.0,
    "it took too long and nobody answered me": -1.0,
    "this is terrible, I hate it, never again": -2.0,
}
PEOPLE = ["Ada", "Bela", "Chidi", "Dana", "Emeka", "Farah"]


def speak(path: Path, text: str, label: float, number: int) -> None:
    """Write a text as speech, which is higher and faster the gladder it is."""
    pitch, speed = 50 + round(15 * label), 170 + round(20 * label)
    if espeak := shutil.which("espeak-ng"):
        how = ["-p", str(pitch), "-s", str(speed), "-v", f"en+m{1 + number % 5}"]
        subprocess.run([espeak, *how, "-w", str(path), text], check=True)
        return
    time = np.arange(int(len(text) * 9 * 22050 / speed)) / 22050
    voice = sum(np.sin(2 * np.pi * k * (60 + 2 * pitch) * time) / k for k in (1, 2, 3))
    noise = np.random.default_rng(number).normal(size=len(time))
    sound = 0.2 * voice * np.abs(np.sin(2 * np.pi * speed / 60 * time)) + 0.01 * noise
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 22050, 0, "NONE", ""))
        file.writeframes((sound * 32767).astype("<i2").tobytes())


def make_calls(folder: Path, sounds: bool, texts: bool, seed: int) -> None:
    """Make 30 calls of six people: recordings, transcripts or both, and a table of ratings."""
    (folder / "recordings").mkdir(parents=True)
    rows = [["id", "label", "group", *["file"] * sounds, *["text"] * texts]]
    for number in range(30):
        person = PEOPLE[number // 5]
        text, label = list(PHRASES.items())[(number + seed) % 5]
        said, file = f"{person} here: {text}", f"recordings/call {number}.wav"
        if sounds:
            speak(folder / file, said, label, number + seed)
        rows.append([f"call {number}", str(label), person, *[file] * sounds, *[said] * texts])
    with (folder / "calls.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)


def site(command, folder: Path, modality: str, *given: str) -> str:
    """What a site types before its node starts; returns that node's configuration."""
    command("utmp-extract", f"modality={modality}", f"source={folder}/calls.csv",
            f"out={folder}/features", *given)  # fmt: skip
    command("utmp-prepare", f"path={folder}/features", f"out={folder}/ours", "split=none",
            "clients.default=1")  # fmt: skip
    return f'modality="{modality}" data="{folder}/ours/{modality}-0.safetensors"'


def test_two_sites_with_recordings_and_transcripts_train_one_model(
    federation, command, tiny, tmp_path
) -> None:
    make_calls(tmp_path / "hospital", sounds=True, texts=False, seed=0)
    make_calls(tmp_path / "helpline", sounds=False, texts=True, seed=1)
    make_calls(tmp_path / "office", sounds=True, texts=True, seed=2)

    # Three commands at each site.
    federation.add_node(site(command, tmp_path / "hospital", "audio"))
    federation.add_node(site(command, tmp_path / "helpline", "language"))
    # One that extracts otherwise.
    make_calls(tmp_path / "clinic", sounds=True, texts=False, seed=3)
    other = site(command, tmp_path / "clinic", "audio", "audio.step=0.4")
    federation.add_node(f"{other} part=1")

    # Five at the coordinator; the first is what the fixture starts.
    both = ["modality=[audio,language]", "source=office/calls.csv", "out=office/features"]
    command("utmp-extract", *both)
    command("utmp-prepare", "path=office/features", "out=evaluation", "clients.default=0",
            "validation_fraction=0.4", "test_fraction=0.5")  # fmt: skip
    model = [each for each in tiny if each.startswith(("model.", "client."))]
    data = ["dataset=shards", f"dataset.path={tmp_path}/evaluation", "clients.default=1"]
    printed = federation.train([*model, *data, "rounds=3", f"run_dir={tmp_path}/run"])
    assert "round 3" in printed
    (left_out,) = (line for line in printed.splitlines() if line.startswith("left out: "))
    assert "client audio-1 has features of the extractor log-mel+mfcc 1 (" in left_out
    assert ", and the evaluation data of log-mel+mfcc 1 (" in left_out

    command("utmp-predict", "model=run", "input=office/features", "out=predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"call {number}" for number in range(30)]
    assert all(row["prediction_audio"] and row["prediction_language"] for row in rows)
    assert all(np.isfinite(float(row["prediction"])) for row in rows)

    spec = load_model(tmp_path / "run/model.safetensors")[0].spec
    assert spec.reading is not None
    assert spec.reading.extractors["language"].startswith("wordllama 1 (")
    failed = command(
        *("utmp-predict", "model=run", f"input={tmp_path}/clinic/features", "out=others.csv"),
        check=False,
    )
    assert failed.returncode == 2 and "audio is from the extractor log-mel+mfcc 1" in failed.stderr
