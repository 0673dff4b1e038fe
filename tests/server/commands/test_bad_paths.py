"""Every command with paths that cannot be used: one line that names the path, and status 2."""

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from commands_in_forks import Commands, CommandsHere, all_commands, leave_out_work
from made_up_models import WIDTHS, write_model
from made_up_runs import write_run
from writers import make_utterances, multibench_content, write_csd, write_pickle, write_table

from common.config import CredentialsConfig, PrepareConfig, compose
from server.credentials.issuing import issue
from server.preparation.preparation import prepare
from server.run.folder import CONFIG, MODEL, ROUNDS, SUMMARY

#: Where a command line names a path that it reads: the command, `@` for the path, and what is
#: there when all is well.
INPUTS = {
    "prepare npz": ("utmp-prepare path=@ out=new", "items.npz"),
    "prepare pickle": ("utmp-prepare path=@ out=new", "items.pkl"),
    "prepare csd": ("utmp-prepare path=@ out=new", "csd"),
    "prepare table": ("utmp-prepare path=@ out=new", "table/items.csv"),
    "describe": ("utmp-prepare path=@ describe=true", "items.npz"),
    "train npz": ("utmp-train dataset=file dataset.path=@ run_dir=new", "items.npz"),
    "train test": (
        "utmp-train dataset=file dataset.path=items.npz dataset.test_path=@ run_dir=new",
        "items.npz",
    ),
    "train shards": ("utmp-train dataset=shards dataset.path=@ run_dir=new", "shards"),
    "resume": ("utmp-train resume=@", "run"),
    "predict model": ("utmp-predict model=@ input=items.npz out=new.csv", "run/model.safetensors"),
    "predict run": ("utmp-predict model=@ input=items.npz out=new.csv", "run"),
    "predict npz": ("utmp-predict model=run input=@ out=new.csv", "items.npz"),
    "predict shard": ("utmp-predict model=run input=@ out=new.csv", "shards/test.safetensors"),
    "predict table": ("utmp-predict model=run input=@ out=new.csv", "table/items.csv"),
    "evaluate run": ("utmp-evaluate model=@ dataset=shards", "run"),
    "evaluate shards": ("utmp-evaluate model=run dataset=@", "shards"),
    "evaluate pickle": ("utmp-evaluate model=run dataset=@", "items.pkl"),
    "export": ("utmp-export model=@ out=new", "run/model.safetensors"),
    "report": ("utmp-report runs=@ out=new", "run"),
    "serve": ("utmp-serve model=@ port=0", "run/model.safetensors"),
    "serve examples": ("utmp-serve model=run examples=@ port=0", "shards/test.safetensors"),
    "serve token": ("utmp-serve model=run token_file=@ port=0", "token.txt"),
    "serve cert": ("utmp-serve model=run ssl_cert=@ ssl_key=server.key port=0", "server.crt"),
    "serve key": ("utmp-serve model=run ssl_cert=server.crt ssl_key=@ port=0", "server.key"),
    "compose": ("utmp-compose data=@", "shards"),
    "credentials": ("utmp-credentials out=@ hosts=[a] clients.audio=1", "keys"),
    # Files that belong to what is named.
    "a csd": ("utmp-prepare path=csd out=new", "csd/CMU_MOSEI_COVAREP.csd"),
    "an array": ("utmp-prepare path=table/items.csv out=new", "table/audio.npy"),
    "an array to predict": ("utmp-predict model=run input=table/items.csv", "table/audio.npy"),
    "a manifest": ("utmp-train dataset=shards dataset.path=shards", "shards/manifest.json"),
    "a shard": ("utmp-train dataset=shards dataset.path=shards", "shards/test.safetensors"),
    "a run's settings": ("utmp-evaluate model=run", f"run/{CONFIG}"),
    "a run's model": ("utmp-export model=run out=new", f"run/{MODEL}"),
    "a report's settings": ("utmp-report runs=run out=new", f"run/{CONFIG}"),
    "a report's summary": ("utmp-report runs=run out=new", f"run/{SUMMARY}"),
    "a report's rounds": ("utmp-report runs=run out=new", f"run/{ROUNDS}"),
    "settings to resume": ("utmp-train resume=run", f"run/{CONFIG}"),
    "an authority": ("utmp-credentials out=keys clients.audio=2", "keys/ca.key"),
}

#: Where a command line names a path that it writes.
OUTPUTS = {
    "prepare": "utmp-prepare path=items.npz out=@",
    "train": "utmp-train dataset=file dataset.path=items.npz run_dir=@",
    "predict": "utmp-predict model=run input=items.npz out=@.csv",
    "evaluate": "utmp-evaluate model=run dataset=shards out=@.json",
    "export": "utmp-export model=run out=@",
    "report": "utmp-report runs=run out=@",
    "credentials": "utmp-credentials hosts=[a] out=@",
}


def missing(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    missing(path)
    path.touch()


def empty_folder(path: Path) -> None:
    missing(path)
    path.mkdir()


def text(path: Path) -> None:
    missing(path)
    path.write_text("Dear all,\nthis is no data.\n")


def noise(path: Path) -> None:
    missing(path)
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def circle(path: Path) -> None:
    missing(path)
    path.symlink_to(path.name)


def truncated(path: Path) -> None:
    """Every file is cut in half."""
    for file in [path] if path.is_file() else path.rglob("*.*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def unreadable(path: Path) -> None:
    path.chmod(0)


def locked(path: Path) -> None:
    """Everything that a folder holds, or the folder around a file."""
    for inside in list(path.iterdir()) if path.is_dir() else [path.parent]:
        inside.chmod(0)


FAULTS: tuple[Callable[[Path], None], ...] = (
    *(missing, empty, empty_folder, text, noise, circle, truncated, unreadable, locked),
)

#: What is no fault: half a token, settings that nobody needs, a folder that is to be made, a run
#: that recorded no rounds.
FINE = {("serve token", "truncated")}
FINE |= {("credentials", fault) for fault in ("missing", "empty_folder")}
FINE |= {("a report's rounds", fault) for fault in ("missing", "empty", "empty_folder", "circle")}
FINE |= {("a report's rounds", "truncated")}  # after a whole line
FINE |= {("predict", "in_a_circle"), ("evaluate", "in_a_circle")}  # the link is replaced
FINE |= {("an array to predict", "missing"), ("an authority", "missing")}

#: One modality less: what is wrong with the rest is no fault of a path.
ONE_LESS = {("a csd", "missing"), ("an array", "missing")}


@pytest.fixture(scope="module")
def socket() -> Iterator[str]:
    with all_commands() as path:
        yield path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that commands read, as it should be, in a folder ``in``."""
    folder = tmp_path_factory.mktemp("good")
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(60, 3, width)) for name, width in WIDTHS.items()}
    np.savez(folder / "items.npz", label=rng.normal(size=60), **arrays)
    given = ["format=npz", f"path={folder}/items.npz", f"out={folder}/shards"]
    prepare(compose(PrepareConfig, given), lambda *_: None, lambda _: {})
    utterances = make_utterances(0, widths=WIDTHS)
    write_pickle(folder / "items.pkl", multibench_content(utterances))
    write_csd(folder / "csd", utterances)
    write_table(folder / "table", utterances)
    write_run(folder / "run", "dataset=file", f"dataset.path={folder}/items.npz")
    write_model(folder / "run")
    (folder / "token.txt").write_text("secret")
    given = [f"out={folder}/keys", "hosts=[a]", "clients.audio=1"]
    issue(compose(CredentialsConfig, given), datetime.now(UTC))
    for name in ("server.crt", "server.key"):
        shutil.copy(folder / "keys" / "server" / name, folder / name)
    return folder


@pytest.fixture
def run(
    request: pytest.FixtureRequest,
    good: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Commands]:
    """Commands in a folder; in forks without root's powers where a fault is one of rights."""
    folder = shutil.copytree(good, tmp_path / "in")
    leave_out_work(monkeypatch.setattr)
    kind, socket = CommandsHere, ""
    if request.getfixturevalue("fault") in RIGHTS:
        kind, socket = Commands, request.getfixturevalue("socket")
    yield kind(socket, folder, tmp_path_factory.mktemp("streams"))
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755)


def folder_locked(path: Path) -> None:
    path.mkdir()
    path.chmod(0)


def around_locked(path: Path) -> None:
    path.parent.chmod(0o555)


def around_is_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


def is_a_file(path: Path) -> None:
    path.touch()


def in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


PLACES = (folder_locked, around_locked, around_is_a_file, is_a_file, in_a_circle)

#: Faults that root would not meet.
RIGHTS = (unreadable, locked, folder_locked, around_locked)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", INPUTS)
def test_what_cannot_be_read_is_one_line(
    run: Commands, name: str, fault: Callable[[Path], None]
) -> None:
    line, item = INPUTS[name]
    path = run.folder / item
    if fault is locked and path.parent == run.folder and path.is_file():
        pytest.skip("no command starts in such a folder")
    fault(path)
    answer = run(*line.replace("@", item).split())
    if (name, fault.__name__) in FINE:
        assert (answer.status, answer.stderr) == (0, "")
    else:
        assert item.partition("/")[0] in answer.error or (name, fault.__name__) in ONE_LESS
        assert not (run.folder / "new").exists()


@pytest.mark.parametrize("fault", PLACES, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", OUTPUTS)
def test_what_cannot_be_written_is_one_line(
    run: Commands, name: str, fault: Callable[[Path], None]
) -> None:
    (run.folder / "there").mkdir()
    line = OUTPUTS[name].replace("@", "there/new")
    fault(run.folder / line.split("=")[-1])
    if (name, fault.__name__) in FINE:
        assert run(*line.split()).shown
    else:
        answer = run(*line.split())
        assert answer.status == 2
        assert re.fullmatch(r"error: [^\n]*there[^\n]*\n", answer.stderr), answer.stderr
