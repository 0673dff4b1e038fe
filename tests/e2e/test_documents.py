"""Every command of the documents runs, and does what they say."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from documents import LOADS, SOCKET, Block, blocks, commands, inline_commands, install
from forked_command import forked_command
from processes import (
    BIN,
    PROJECT,
    TIMEOUT,
    Federation,
    answers,
    flower_environment,
    run_command,
    wait_until,
)
from service_models import serving
from tiny_runs import untimed
from writers import make_utterances, write_multibench

from common.config import SCHEMAS, Config, compose

pytestmark = pytest.mark.e2e

#: Sections whose commands run beside each other, and have tests of their own.
APART = ("Before you start", "Deployment", "Over TLS, with known sites")
SERVICE = "utmp-serve"
README = (PROJECT / "README.md").read_text()
WIDTHS = {"language": 8, "audio": 5, "vision": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader of the README works: the project's folder, with data of their own."""
    work = tmp_path_factory.mktemp("reader")
    (work / "bin").mkdir()
    install(work / "bin")
    (work / ".venv/bin").mkdir(parents=True)
    (work / ".venv/bin/activate").touch()
    for name in ("docker", "pyproject.toml"):
        (work / name).symlink_to(PROJECT / name)
    write_multibench(work / "mosei_raw.pkl", make_utterances(1, count=96, videos=24))
    rng = np.random.default_rng(0)
    rows = {"label": rng.normal(size=60), "video": np.arange(60) // 2}
    arrays = {name: rng.normal(size=(60, 5, 4)).astype("f4") for name in ("language", "audio")}
    np.savez(work / "train.npz", **rows, **arrays)
    (work / "calls.csv").write_text("id\n" + "\n".join(f"call {item}" for item in range(5)) + "\n")
    moods = [("bad", "good", "mixed")[item % 3] for item in range(90)]
    lines = [f"{item},{item // 3},{1 + item % 5},{moods[item]}" for item in range(90)]
    (work / "ours").mkdir()
    (work / "ours/calls.csv").write_text("\n".join(["id,group,rating,mood", *lines]) + "\n")
    np.save(work / "ours/language.npy", rng.normal(size=(90, 6, 3)).astype("f4"))
    np.save(work / "ours/audio.npy", rng.normal(size=(90, 6, 2)).astype("f4"))
    for name, width in WIDTHS.items():
        np.save(work / f"{name}.npy", rng.normal(size=(5, 6, width)).astype("f4"))
    return work


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    known = flower_environment(folder)
    return known | {"PATH": f"{folder / 'bin'}{os.pathsep}{known['PATH']}"}


@pytest.fixture
def loaded(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same, with the commands loaded once."""
    with forked_command("", LOADS, environment) as command:
        yield environment | {SOCKET: command.path}


def run(block: Block, text: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{block}:\n{text}\nexited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def ordinary(block: Block) -> bool:
    first = next(commands(block.text), [""])[0]
    return block.section not in APART and first not in (SERVICE, "curl")


def test_a_reader_who_runs_everything(folder: Path, loaded: dict[str, str]) -> None:
    """One test: what comes later needs what came before, and loading takes long."""
    broken = folder / "runs/2026-11-24/10-00-00"
    for block in filter(ordinary, blocks()):
        if block.section == "When something breaks" and not broken.exists():
            shutil.copytree(folder / "runs/first", broken)
            (broken / "summary.json").unlink()
        run(block, block.text, folder, loaded)
    check_files(folder, broken)
    check_python(folder)
    check_service(folder, loaded)
    check_credentials(folder, loaded)


def check_files(folder: Path, broken: Path) -> None:
    with (folder / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (folder / "one.csv").open() as file:
        alone = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [row["id"] for row in alone]
    assert [row["prediction_vision"] for row in rows] == [row["prediction"] for row in alone]
    (block,) = blocks("csv")
    assert block.text.splitlines()[0].split(",")[:9] == list(rows[0])[:9]
    for name in ("report/report.html", "calls.parquet", "evaluation.json", "onnx/export.json"):
        assert (folder / name).stat().st_size > 0, name
    assert len((broken / "rounds.jsonl").read_text().splitlines()) == 6


def check_python(folder: Path) -> None:
    (block,) = [each for each in blocks("python") if each.document == "README.md"]
    given = "import numpy as np\nwords, sounds = np.ones((7, 8)), np.ones((9, 5))\n"
    done = subprocess.run(
        [sys.executable, "-c", given + block.text],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.match(r"\[\S+\] \[\S+\] \{'language': array", done.stdout)


def check_service(folder: Path, environment: dict[str, str]) -> None:
    (served,) = [block for block in blocks() if block.text.startswith(SERVICE)]
    (asked,) = [block for block in blocks() if block.text.startswith("curl")]
    (words,) = commands(served.text)
    with serving(folder, *words[1:]) as (_, _, url):
        text = asked.text.replace("http://127.0.0.1:8100/", url)
        (prediction,) = json.loads(run(asked, text, folder, environment))["predictions"]
        assert prediction["id"] == "a"
        assert list(prediction["modalities"]) == ["audio"]
        for path in ("", "model", "openapi.json", "docs", "metrics"):
            assert answers(url + path), path


def test_the_first_real_deployment(folder: Path, environment: dict[str, str]) -> None:
    nodes, submit = [
        block
        for block in blocks()
        if block.section == "Deployment"
        and any(words[0].startswith(("flower-superlink", "flwr")) for words in commands(block.text))
    ]
    (connection,) = blocks("toml")
    with Federation(folder, environment) as running:
        port = str(running.port)

        def moved(text: str) -> str:
            return re.sub(r"\b8000\b", port, text)

        (Path(environment["FLWR_HOME"]) / "config.toml").write_text(moved(connection.text))
        for words in commands(moved(nodes.text)):
            if words[0] == "flower-superlink":
                running.spawn(BIN / words[0], *words[1:], "--port", port)
                wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), "the SuperLink")
            elif words[0] == "utmp-client":
                running.spawn(BIN / words[0], *words[1:])
        overrides = "dataset.num_items=240 model.width=4 model.heads=2 model.layers=1"
        text = submit.text.replace("flwr run .", f"flwr run '{PROJECT}'")
        text = text.replace("rounds=3", f"rounds=2 {overrides} run_dir={folder}/real")
        assert "round 2" in run(submit, text, folder, environment)
    rounds, summary = untimed(folder / "real")
    assert list(summary["test"]) == ["multimodal", "language", "audio", "vision"]
    assert rounds[1]["clients"] == {"language": 1, "audio": 1, "vision": 1}


def check_credentials(folder: Path, environment: dict[str, str]) -> None:
    made, node = [block for block in blocks() if block.section == "Over TLS, with known sites"]
    printed = run(made, made.text.replace("credentials '", "tls '"), folder, environment)
    # What follows is printed for those who made them, as the README has it.
    (words,) = commands(node.text)
    said = " ".join(printed.split())
    for option in [word for word in words if word.startswith("--")]:
        assert option in said, option
    assert (folder / "tls/sites/audio-0/audio-0.key").is_file()


#: Figures of a training by threads and processors of another kind.
NEARLY = 0.03
FIGURE = re.compile(r"(?<![\w-])[-+]?\d*\.?\d+")


def printed_so(printed: str, excerpt: str, within: float) -> None:
    """Check that the lines of an excerpt were printed, with their figures or about these."""
    for line in filter("…".__ne__, excerpt.splitlines()):
        words = FIGURE.sub("#", line).split()
        alike = [each for each in printed.splitlines() if FIGURE.sub("#", each).split() == words]
        assert any(
            np.allclose(figures(each), figures(line), rtol=0, atol=within) for each in alike
        ), f"{line!r} is not in\n{printed}"


def figures(line: str) -> list[float]:
    return [float(each) for each in FIGURE.findall(line)]


def test_excerpts_of_the_readme_are_what_its_commands_print(tmp_path: Path) -> None:
    """As they stand, with the settings of the README: the other test has smaller ones."""
    environment = flower_environment(tmp_path)
    first = [block for block in blocks() if block.section == "Your first federation"]
    typed = [words for block in first for words in commands(block.text)]

    def does(name: str) -> str:
        return run_command(tmp_path, environment, *next(w for w in typed if w[0] == name)).stdout

    trained, (made, table) = does("utmp-train"), blocks("text")
    printed_so(trained, table.text, NEARLY)
    # `make train` has other counts of clients, and more rounds.
    printed_so(trained, made.text, 1e9)
    does("utmp-prepare")
    does("utmp-predict")
    (excerpt,) = blocks("csv")
    head, row = (line.split(",")[:-1] for line in excerpt.text.splitlines())
    with (tmp_path / "all.csv").open() as file:
        written = next(csv.DictReader(file))
    assert head == list(written)[: len(head)]
    printed_so(",".join(written[name] for name in head), ",".join(row), NEARLY)
    (worked,) = re.findall(r"sum to the prediction: ([^\n]*[^.\n])\.$", README, re.MULTILINE)
    parts = [value for name, value in written.items() if name.startswith(("base", "contrib"))]
    *added, total = figures(worked.replace("+ ", ""))
    np.testing.assert_allclose(added, list(map(float, parts)), atol=NEARLY)
    assert sum(added) == pytest.approx(total, abs=0.0015)
    assert total == pytest.approx(float(written["prediction"]), abs=NEARLY)


def test_commands_in_sentences_are_ones_that_there_are() -> None:
    schemas = {f"utmp-{schema.file}": schema for schema in SCHEMAS} | {"utmp-train": Config}
    found = [words for words in inline_commands() if "…" not in " ".join(words)]
    assert len(found) >= 6
    for words in found:
        compose(schemas[words[0]], [each for each in words[1:] if not each.startswith("--")])


def test_what_goes_wrong_is_said_in_these_words() -> None:
    text = (PROJECT / "docker/README.md").read_text()
    rows = text.split("| what it says | what to do |")[1].split("\n\n")[0].splitlines()[2:]
    said = [words for row in rows for words in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(said) > 10
    sources = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text())
        for package in ("server", "client", "common")
        for path in (PROJECT / package).rglob("*.py")
    )
    for message in said:
        parts = [part.strip(" :;?") for part in re.split(r"'[^']*'|…|audio|\d+", message)]
        parts = [part for part in parts if len(part) > 3]
        assert parts
        assert [part for part in parts if part not in sources] == [], message
