"""Every command with paths as people name them; what is printed to be pasted runs when it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands_in_forks import Commands, CommandsHere, leave_out_work
from flwr.common.config import parse_config_args
from made_up_models import WIDTHS, write_model
from made_up_runs import write_run

NAMES = [
    *(
        "a b",
        " before",
        "after ",
        "ü",
        "日\u3000本",
        "å_é",
        "👨\u200d👩\u200d👧\u00a0",
        "it's",
        'say "hi"',
    ),
    *("'", "=", "a=b", ",", "a, b", "#", "~a", "a~", "[a,b]", "a[b", "{a:b}", "a}b", "(a"),
    *("choice(a,b)", "$HOME", "${", "`id`", "a\\b", "a\\", "\\,", "-x", ":", "100%", "&&", ";"),
    *("*", "?|<!>", "@+^", "true", "1.50", "..."),
]


@pytest.fixture
def run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Commands:
    leave_out_work(monkeypatch.setattr)
    return CommandsHere("", tmp_path, tmp_path_factory.mktemp("streams"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands begin with: items, a model, a token and a run."""
    folder = tmp_path_factory.mktemp("made")
    write_items(folder / "npz")
    write_model(folder / "model")
    (folder / "token").write_text("secret")
    write_run(folder / "report", corr=0.4)
    return folder


def write_items(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(60, 3, width)) for name, width in WIDTHS.items()}
    with path.open("wb") as file:
        np.savez(file, label=rng.normal(size=60), **arrays)


def after(line: str, words: str) -> str:
    assert words in line
    return line.partition(words)[2].rstrip("\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_path_may_be_called_anything(run: Commands, made: Path, name: str) -> None:
    assert len(NAMES) == 40
    for one in made.iterdir():
        copy = shutil.copytree if one.is_dir() else shutil.copy
        copy(one, run.folder / f"{name}.{one.name}")
    check_data(run, name)
    check_model(run, name)
    check_credentials(run, name)


def check_data(run: Commands, name: str) -> None:
    """From a file to a run, and to its report."""
    shown = run("utmp-prepare", f"path={name}.npz", f"out={name}").shown
    assert (run.folder / name / "manifest.json").is_file()
    following = run.pasted(after(shown.splitlines()[-1], "next: "))
    assert following == ["utmp-train", f"dataset.path={name}"]
    assert run(*following, f"run_dir={name}.run").shown == "would train\n"
    again = run(*following, f"run_dir={name}.run").error
    resuming = run.pasted(f"utmp-train {after(again, 'or go on with ')}")
    assert resuming == ["utmp-train", f"resume={run.folder / name}.run"]
    assert run(*resuming).shown == "would train\n"
    page = f"out={name}.page"
    assert f"{name}.page/report.md" in run("utmp-report", f"runs={name}.report", page).shown
    assert (run.folder / f"{name}.page" / "report.html").is_file()
    composed = json.dumps(yaml.safe_load(run("utmp-compose", f"data={name}").shown))
    assert json.dumps(f"/{name}/audio-0")[1:-1].replace("$", "$$") in composed


def check_model(run: Commands, name: str) -> None:
    """What is done with a model, with items of a file and of shards."""
    model = f"model={name}.model"
    predicted = run("utmp-predict", model, f"input={name}.npz", f"out={name}.csv").shown
    assert predicted.endswith(f"predictions: {name}.csv\n")
    assert run("utmp-evaluate", model, f"dataset={name}", f"out={name}.json").shown
    evaluation = json.loads((run.folder / f"{name}.json").read_text())
    assert evaluation["model"] == f"{name}.model"
    assert evaluation["dataset"] == f"{name}/test.safetensors"
    assert run("utmp-export", model, f"out={name}.onnx", "subsets=[audio]").shown
    assert (run.folder / f"{name}.onnx" / "export.json").is_file()
    given = (f"examples={name}/test.safetensors", f"token_file={name}.token", "port=0")
    shown = run("utmp-serve", model, *given).shown
    assert shown.startswith(f"{name}.model predicts ") and shown.endswith("would serve\n")


def check_credentials(run: Commands, name: str) -> None:
    """What comes next at the coordinator and at a site."""
    given = (f"out={name}.keys", "hosts=[localhost]", "clients.audio=1")
    shown = run("utmp-credentials", *given).shown
    lines = [line.strip() for line in shown.splitlines() if line.startswith("  ")]
    superlink, register, client = map(run.pasted, lines)
    for option in ("--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile"):
        assert (run.folder / superlink[superlink.index(option) + 1]).is_file()
    files = [word for word in (*superlink, *register) if ".keys/" in word]
    assert len(files) == 4 and not any(file.startswith("-") for file in files)
    assert parse_config_args([client[-1]]) == {"modality": "audio", "part": 0}
    site = ("clients.default=1", "split=none", f"out={name}.site")
    shown = run("utmp-prepare", f"path={name}.npz", *site).shown
    words = run.pasted(after(shown.splitlines()[-1], "next, at the site: "))
    node = parse_config_args([words[-1]])
    assert (run.folder / str(node["data"])).is_file()
