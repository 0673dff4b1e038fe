"""The commands of the documents, and stand-ins that run them with smaller settings.

Each shell block runs unchanged, by bash, in one folder, in order. The stand-ins on its path call
the real commands with a smaller model and fewer rounds. `make` and Docker's commands are checked
and not run: `make test-all` runs this, and Docker needs an engine (tests/e2e/docker.sh has one).
"""

import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "server"))
from forked_command import Fork

PROJECT = Path(__file__).resolve().parents[2]

#: What a user or a maintainer reads, in the order in which its commands run.
DOCUMENTS = (
    "README.md",
    "conf/README.md",
    "docker/README.md",
    "server/aggregation/README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
)

#: Commands of this project that the stand-ins call.
OWN = ("train", "report", "evaluate", "predict", "prepare", "compose", "credentials", "export")
STAND_INS = (
    *(f"utmp-{name}" for name in OWN),
    "make",
    "pip",
    "docker",
    "docker-compose",
    "pre-commit",
    "tensorboard",
)

#: Names the variable that says where the process with the commands listens.
SOCKET = "COMMANDS_SOCKET"

#: What loads them there.
LOADS = f"""
import importlib, sys
for module in ("common.config", "server.app", "server.runtimes.local", "server.prediction.files"):
    importlib.import_module(module)
commands = {{name: importlib.import_module(f"server.commands.{{name}}") for name in {OWN}}}

def main():
    commands[sys.argv[0].removeprefix("utmp-")].main()
"""

#: Of every training; the dataset's belong to the embedded one.
MODEL = ("model.width=4", "model.heads=2", "model.layers=1", "model.decoder_layers=1")
ITEMS = ("dataset.num_items=240", "dataset.num_speakers=60")
ROUNDS = 6
CLIENTS = 2


@dataclass(frozen=True)
class Block:
    """A code block: its document and section, the line that it begins on, and its text."""

    document: str
    section: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line} ({self.section})"


def blocks(language: str = "sh") -> Iterator[Block]:
    """Yield the blocks of all documents in one language."""
    parts = rf"^#+ (?P<section>[^\n]*)$|^ *```{language}\n(?P<text>.*?)\n *```$|^ *```.*?\n *```$"
    for document in DOCUMENTS:
        section, content = "", (PROJECT / document).read_text()
        for part in re.finditer(parts, content, flags=re.DOTALL | re.MULTILINE):
            section = part["section"] or section
            if part["text"] is not None:
                line = content.count("\n", 0, part.start()) + 1
                yield Block(document, section, line, part["text"])


def commands(text: str) -> Iterator[list[str]]:
    """Yield the commands of a block, in words."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def inline_commands() -> Iterator[list[str]]:
    """Yield the commands of this project in the documents' sentences and tables."""
    for document in DOCUMENTS:
        prose = re.sub(r"```.*?```", "", (PROJECT / document).read_text(), flags=re.DOTALL)
        for code in re.findall(r"`(utmp-\w+ [^`]+)`", prose):
            yield shlex.split(" ".join(code.split()))


def smaller(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a training that takes a second."""
    given = dict(each.partition("=")[::2] for each in arguments)
    rounds = [f"rounds={min(int(given['rounds']), ROUNDS)}"] if "rounds" in given else []
    if "resume" in given:
        return [*arguments, *rounds]
    clients = [name for name in given if name.startswith("clients.") and int(given[name]) > CLIENTS]
    mine = [*MODEL, "client.local_epochs=1", *(rounds or ["rounds=1"])]
    mine += [f"{name}={CLIENTS}" for name in clients]
    if not {"dataset", "dataset.path"} & given.keys():
        mine += ITEMS
    if "runtime" not in given:
        mine += ["runtime=sequential"]
    return [*arguments, *mine]


def install(folder: Path) -> None:
    """Put the stand-ins into a folder for the path."""
    for name in STAND_INS:
        script = folder / name
        script.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {name} "$@"\n'
        )
        script.chmod(0o755)


# What the stand-ins do --------------------------------------------------------------------------


def stand_in(name: str, arguments: list[str]) -> int:
    """Do what a command does, smaller; return its exit status."""
    real = str(Path(sys.executable).parent / name)
    match name:
        case "utmp-train":
            return _train(smaller(arguments))
        case "make":
            return subprocess.call(["/usr/bin/make", "--dry-run", "-C", str(PROJECT), *arguments])
        case "pip":
            return _extras(arguments)
        case "docker" | "docker-compose":
            return _docker(name, arguments)
        case "pre-commit":
            return 0 if (PROJECT / ".pre-commit-config.yaml").is_file() else 1
        case "tensorboard":
            return subprocess.call([real, *arguments, "--inspect"], stdout=subprocess.DEVNULL)
        case _:
            return _forked(name, arguments, 2)


def _train(arguments: list[str]) -> int:
    with tempfile.TemporaryFile("w+") as errors:
        status = _forked("utmp-train", arguments, errors.fileno())
        errors.seek(0)
        said = errors.read()
    sys.stderr.write(said)
    if any("cuda" in each for each in arguments) and status == 2:
        # Without a GPU it has to say so.
        return 0 if "cuda" in said.lower() or "gpu" in said.lower() else 2
    return status


def _forked(name: str, arguments: list[str], errors: int) -> int:
    """Have the process that has the commands loaded run one here; return its exit status."""
    return Fork(os.environ[SOCKET], [name, *arguments], Path.cwd(), [1, errors]).end()


def _extras(arguments: list[str]) -> int:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    asked = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
    known = project["optional-dependencies"]
    return 0 if asked and all(name in known for each in asked for name in each.split(",")) else 1


def _docker(name: str, arguments: list[str]) -> int:
    """Check the files that are named, and that the script with an engine does the same."""
    script = (PROJECT / "tests/e2e/docker.sh").read_text()
    named = [after for before, after in itertools.pairwise(arguments) if before in ("-f", "--file")]
    known = [each for each in named if (PROJECT / each).is_file() or Path(each).is_file()]
    verbs = {"up", "run", "build"} & set(arguments)
    engine_only = [each for each in named if each.startswith("docker/compose")]
    # GPUs are added to what the script runs.
    tested = all(Path(each).name in script for each in engine_only if "gpu" not in each)
    if known == named and named and verbs and tested:
        return 0
    print(
        f"{name}: files {named}, of which there are {known}; verbs {verbs}; tested {tested}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    sys.exit(stand_in(sys.argv[1], sys.argv[2:]))
