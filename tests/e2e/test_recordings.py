"""From recordings and transcripts at two sites to a prediction, by the README's commands alone."""

import csv
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest
from documents import blocks, commands
from processes import PROJECT, Federation, run_command

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


def typed(modality: str = "") -> list[list[str]]:
    """The commands of the README at a site of a modality, or at the coordinator, in words."""
    site, coordinator = [block for block in blocks() if block.section == "Before you start"]
    text = site.text.replace("audio", modality) if modality else coordinator.text
    assert len(list(commands(text))) <= 6
    return [words for words in commands(text) if words[0] != "pip"]


def prepare_site(folder: Path, environment: dict[str, str], modality: str, *given: str) -> str:
    """Type what a site does, up to where its node starts; return that node's configuration."""
    extract, prepare, client = typed(modality)
    run_command(folder, environment, *extract, *given)
    run_command(folder, environment, *prepare)
    assert client[:4] == ["utmp-client", "--insecure", "--superlink", "127.0.0.1:8000"]
    return client[5].replace('data="', f'data="{folder}/')


def test_two_sites_with_recordings_and_transcripts_train_one_model(
    federation: Federation, environment: dict[str, str], tiny: list[str], tmp_path: Path
) -> None:
    make_calls(tmp_path / "hospital", sounds=True, texts=False, seed=0)
    make_calls(tmp_path / "helpline", sounds=False, texts=True, seed=1)
    make_calls(tmp_path / "clinic", sounds=True, texts=False, seed=2)
    make_calls(tmp_path, sounds=True, texts=True, seed=3)  # the coordinator
    federation.add_node(prepare_site(tmp_path / "hospital", environment, "audio"))
    federation.add_node(prepare_site(tmp_path / "helpline", environment, "language"))
    # One that extracts otherwise.
    other = prepare_site(tmp_path / "clinic", environment, "audio", "audio.step=0.4")
    federation.add_node(f"{other} part=1")

    link, extract, prepare, run, predict = typed()
    assert link == ["utmp-superlink", "--insecure", "--database", "superlink.db"]  # the fixture
    federation.run(*extract)
    assert "language is from the extractor wordllama 1 (" in federation.run(*prepare)
    smaller = " ".join(each for each in tiny if each.startswith(("model.", "client.", "rounds=")))
    run[-1] = run[-1].replace('overrides="', f'overrides="{smaller} ')
    printed = federation.run(*[str(PROJECT) if word == "." else word for word in run])
    assert "round 2" in printed
    left_out = next(line for line in printed.splitlines() if "left out: " in line)
    assert "client audio-1 has features of the extractor log-mel+mfcc 1 (" in left_out
    assert ", and the evaluation data of log-mel+mfcc 1 (" in left_out

    federation.run(*predict)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"call {number}" for number in range(30)]
    assert all(row["prediction_audio"] and row["prediction_language"] for row in rows)
    assert all(np.isfinite(float(row["prediction"])) for row in rows)

    spec = load_model(tmp_path / "runs/calls/model.safetensors")[0].spec
    assert spec.reading is not None
    assert spec.reading.extractors["language"].startswith("wordllama 1 (")
    predict[2] = "input=clinic/features"
    failed = run_command(tmp_path, environment, *predict, "overwrite=true", check=False)
    assert failed.returncode == 2 and "audio is from the extractor log-mel+mfcc 1" in failed.stderr
