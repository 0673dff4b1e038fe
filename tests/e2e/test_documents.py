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
from typing import Any

import httpx
import numpy as np
import pytest
from documents import SOCKET, Block, blocks, commands, inline_commands, install
from processes import BIN, PROJECT, TIMEOUT, flower_environment, free_port, wait_until
from writers import make_utterances, write_multibench

pytestmark = pytest.mark.e2e

#: Sections whose commands run beside each other, and have tests of their own below.
APART = ("Deployment", "Over TLS, with known sites")
SERVICE = "utmp-serve"
WIDTHS = {"language": 24, "audio": 12, "vision": 16}


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
    for name, width in WIDTHS.items():
        np.save(work / f"{name}.npy", rng.normal(size=(5, 6, width)).astype("f4"))
    return work


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    home = folder / "flower-home"
    home.mkdir()
    known = flower_environment(home)
    return known | {"PATH": f"{folder / 'bin'}{os.pathsep}{known['PATH']}"}


@pytest.fixture
def loaded(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The same, with the commands loaded once."""
    listens = tmp_path_factory.mktemp("forks") / "socket"
    script = Path(__file__).with_name("documents.py")
    process = subprocess.Popen([sys.executable, script, "serve-forks", listens], env=environment)
    try:
        wait_until(listens.exists, "the process that loads the commands")
        yield environment | {SOCKET: str(listens)}
    finally:
        process.kill()
        process.wait()


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
    given = "import numpy as np\nwords, sounds = np.ones((7, 24)), np.ones((9, 12))\n"
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
    port = free_port()
    (line,) = commands(served.text)
    service = subprocess.Popen(
        [BIN / line[0], *line[1:], f"port={port}"], cwd=folder, env=environment
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(f"{url}/health"), "the service")
        answer = json.loads(
            run(asked, asked.text.replace("http://127.0.0.1:8100", url), folder, environment)
        )
        (prediction,) = answer["predictions"]
        assert prediction["id"] == "a"
        assert list(prediction["modalities"]) == ["audio"]
        for path in ("/", "/model", "/openapi.json", "/docs", "/metrics"):
            assert httpx.get(url + path).status_code == 200, path
    finally:
        service.terminate()
        service.wait(timeout=20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def test_the_first_real_deployment(folder: Path, environment: dict[str, str]) -> None:
    nodes, submit = [
        block
        for block in blocks()
        if block.section == "Deployment"
        and any(words[0].startswith(("flower-superlink", "flwr")) for words in commands(block.text))
    ]
    (connection,) = blocks("toml")
    port = str(free_port())

    def moved(text: str) -> str:
        return re.sub(r"\b8000\b", port, text)

    started: list[subprocess.Popen[Any]] = []
    (Path(environment["FLWR_HOME"]) / "config.toml").write_text(moved(connection.text))
    try:
        for words in commands(moved(nodes.text)):
            if words[0] not in ("flower-superlink", "utmp-client"):
                continue
            more = ["--port", port] if words[0] == "flower-superlink" else []
            with (folder / f"{len(started)}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [BIN / words[0], *words[1:], *more],
                        cwd=folder,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
            if more:
                url = f"http://127.0.0.1:{port}/health"
                wait_until(lambda: _answers(url), "the SuperLink")  # noqa: B023
        overrides = "dataset.num_items=240 model.width=4 model.heads=2 model.layers=1"
        text = submit.text.replace("flwr run .", f"flwr run '{PROJECT}'")
        text = text.replace("rounds=3", f"rounds=2 {overrides} run_dir={folder}/real")
        printed = run(submit, text, folder, environment)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=30)
    assert "round 2" in printed
    summary = json.loads((folder / "real/summary.json").read_text())
    assert list(summary["test"]) == ["multimodal", "language", "audio", "vision"]
    records = (folder / "real/rounds.jsonl").read_text().splitlines()
    assert json.loads(records[1])["clients"] == {"language": 1, "audio": 1, "vision": 1}


def check_credentials(folder: Path, environment: dict[str, str]) -> None:
    made, node = [block for block in blocks() if block.section == "Over TLS, with known sites"]
    printed = run(made, made.text.replace("credentials '", "tls '"), folder, environment)
    # What follows is printed for those who made them, as the README has it.
    (words,) = commands(node.text)
    said = " ".join(printed.split())
    for option in [word for word in words if word.startswith("--")]:
        assert option in said, option
    assert (folder / "tls/sites/audio-0/audio-0.key").is_file()


def test_commands_in_sentences_are_ones_that_there_are(folder: Path) -> None:
    from common.config import (
        ComposeConfig,
        Config,
        CredentialsConfig,
        EvaluateConfig,
        PredictConfig,
        PrepareConfig,
        ReportConfig,
        compose,
    )

    composers = {
        "utmp-train": lambda given: compose(Config, given),
        "utmp-compose": lambda given: compose(ComposeConfig, given),
        "utmp-credentials": lambda given: compose(CredentialsConfig, given),
        "utmp-evaluate": lambda given: compose(EvaluateConfig, given),
        "utmp-predict": lambda given: compose(PredictConfig, given),
        "utmp-prepare": lambda given: compose(PrepareConfig, given),
        "utmp-report": lambda given: compose(ReportConfig, given),
    }
    found = [words for words in inline_commands() if "…" not in " ".join(words)]
    assert len(found) >= 6
    for words in found:
        composers[words[0]]([each for each in words[1:] if not each.startswith("--")])


def test_what_goes_wrong_is_said_in_these_words() -> None:
    text = (PROJECT / "docker/README.md").read_text()
    table = text.split("| what it says | what to do |")[1].split("\n\n")[0]
    sources = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text())
        for package in ("server", "client", "common")
        for path in (PROJECT / package).rglob("*.py")
    )
    said = re.findall(
        r"`([^`]+)`",
        " ".join(row.split("|")[1] for row in table.splitlines()[2:] if row.startswith("|")),
    )
    assert len(said) > 10
    for message in said:
        if message in ("database is locked",):  # SQLite's
            continue
        parts = [
            part for part in re.split(r"'[^']*'|…|audio|\d+", message) if len(part.strip()) > 3
        ]
        assert parts
        for part in parts:
            assert part.strip(" :;?") in sources, message
