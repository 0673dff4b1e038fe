"""What a run cannot be gone on with: each in one line that names it, and the run stays as it is."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import yaml
from broken_runs import ONE, begin, execute, files, go_on
from flwr.supercore.task_identity import TaskIdentity
from forked_command import Answer, ForkedCommand, forked_command
from omegaconf import OmegaConf
from tiny_runs import TINY, left_in, tiny

from common.config import (
    Config,
    OnMissingModality,
    Runtime,
    TrackingConfig,
    TrackingTool,
    compose_config,
    config_of_settings,
)
from common.errors import UserError
from server.app import check_federated, prepare
from server.run.folder import RunFolder, read_settings
from server.run.resume import plain_settings, resumed_config

pytestmark = pytest.mark.usefixtures("in_a_task")


Command = Callable[..., Answer]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of three rounds that broke off in its second; only read."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        folder = tmp_path_factory.mktemp("broken") / "run"
        begin(folder, "rounds=3", "strategy=fedadam", before=2)
    yield folder


@pytest.fixture
def folder(broken: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copytree(broken, tmp_path / "run")


def refused(folder: Path, *given: str) -> str:
    """Return the line that a run is refused with, which leaves it as it is."""
    before = files(folder) if folder.is_dir() else {}
    with pytest.raises(UserError) as raised:
        go_on(folder, *given)
    assert (files(folder) if folder.is_dir() else {}) == before
    line = str(raised.value)
    assert "\n" not in line
    # A process would end here, and with it its hold on the folder.
    del raised
    gc.collect()
    return line


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["strategy=fedavgm"], "strategy.name is fedadam in that run and fedavgm here"),
        (["strategy.name=mine"], "strategy.name is fedadam in that run and mine here"),
        (["model=small"], "model.attention_dropout.language is 0.1 in that run and nothing here"),
        (["model.width=8"], "model.width is 4 in that run and 8 here"),
        (["seed=7"], "seed is 1234 in that run and 7 here"),
        (["+clients.audio=2"], "clients.audio is not set in that run and 2 here"),
        (["dataset.num_items=121"], "dataset.num_items is 120 in that run and 121 here"),
        (["partition=dirichlet"], "partition.name is groups in that run and dirichlet here"),
        (["strategy=local"], "strategy.name is fedadam in that run and local here"),
        (["seed=1234", "client.lr=0.5"], "client.lr is 0.001 in that run and 0.5 here"),
        (["experiment=iid"], "partition.name is groups in that run and iid here"),
    ],
)
def test_a_setting_that_is_given_and_differs_is_named(
    folder: Path, given: list[str], named: str
) -> None:
    line = refused(folder, *given)
    assert line.startswith(f"resume={folder}: {named}")
    assert line.endswith("; leave it out, or start a new run")


def test_settings_that_are_given_as_they_were_are_taken(folder: Path, tmp_path: Path) -> None:
    same = ["strategy=fedadam", "seed=1234", "clients.default=1", "model.width=4"]
    given = [f"resume={folder}", *same]
    run = prepare(tiny(*given), tmp_path / "elsewhere", given)
    assert run.config.resume == str(folder)
    assert (run.folder.path, run.config.rounds) == (folder, 3)


def test_where_nothing_says_what_was_given_all_is_compared(folder: Path, tmp_path: Path) -> None:
    def asked(*overrides: str) -> Config:
        return tiny(*ONE, f"resume={folder}", "rounds=3", *overrides)

    before = files(folder)
    with pytest.raises(UserError, match=r"strategy\.name is fedadam in that run and hierarchical"):
        prepare(asked(), tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"clients\.default is 1 in that run and 2 here"):
        prepare(asked("strategy=fedadam", "clients.default=2"), tmp_path / "elsewhere")
    assert files(folder) == before
    run = prepare(asked("strategy=fedadam", "runtime.node_timeout=3"), tmp_path / "elsewhere")
    assert run.config.runtime.node_timeout == 3
    execute(run)
    assert left_in(folder)[1]["rounds"] == 3


def test_an_experiment_asks_for_all_its_settings(tmp_path: Path) -> None:
    typed = ["experiment=iid", f"resume={tmp_path}"]
    stored = read_settings(written(tmp_path, compose_config("config", ["experiment=iid"])))
    asked = compose_config("config", typed)
    assert resumed_config(stored, asked, typed).resume == str(tmp_path)
    stored["seed"] = 9
    with pytest.raises(UserError, match=f"seed is 9 in that run and {asked.seed} here"):
        resumed_config(stored, asked, typed)


def written(folder: Path, config: Config) -> Path:
    """Write a configuration as a run does."""
    run = RunFolder(folder)
    run.write_config(config)
    run.close()
    return folder / "config.yaml"


@pytest.mark.parametrize("given", [None, ["dataset.path=b.npz"], ["dataset=npz", "seed=1"]])
def test_another_file_is_another_run(tmp_path: Path, given: list[str] | None) -> None:
    config = compose_config("config", ["dataset=npz", "dataset.path=a.npz", "run_dir=x"])
    stored = read_settings(written(tmp_path, config))
    asked = compose_config("config", ["dataset=npz", "dataset.path=b.npz", "resume=x", "run_dir=x"])
    with pytest.raises(UserError, match=r"dataset\.path is a\.npz in that run and b\.npz here"):
        resumed_config(stored, asked, given)


def test_what_is_free_may_differ_and_the_rest_of_its_group_stays(tmp_path: Path) -> None:
    former = compose_config(
        "config",
        ["runtime=sequential", "runtime.node_timeout=5", "checkpoint.best=false", "run_dir=x"],
    )
    stored = read_settings(written(tmp_path, former))
    free = ["rounds=40", "runtime.absent=abort", "checkpoint.keep=7", "tracking=mlflow"]
    given = [*free, "run_dir=y", "resume=x"]
    config = resumed_config(stored, compose_config("config", given), given)
    assert config.rounds == 40
    assert config.runtime == replace(former.runtime, absent=OnMissingModality.abort)
    assert config.runtime.name is Runtime.sequential
    assert config.checkpoint == replace(former.checkpoint, keep=7)
    assert config.tracking == TrackingConfig(TrackingTool.mlflow)
    # It stays where it is.
    changed = {name: getattr(config, name) for name in ("runtime", "checkpoint", "tracking")}
    assert config == replace(former, rounds=40, resume="x", **changed)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["dataset=npz", "dataset.path=[a.npz,b.npz]", "dataset.tabular=[audio]"],
        ["dataset=shards", "dataset.path=s", "partition=size"],
        ["partition=dirichlet", "clients.audio=4", "+model.attention_dropout.audio=0.2"],
        ["strategy=fedadam", "privacy=none", "fusion=mean", "client.device=cpu"],
    ],
)
def test_a_configuration_that_was_written_is_read_as_it_was(
    tmp_path: Path, overrides: list[str]
) -> None:
    config = compose_config("config", [*overrides, "run_dir=x"])
    assert config_of_settings(read_settings(written(tmp_path, config))) == config
    structured = OmegaConf.structured(config)
    assert plain_settings(config) == OmegaConf.to_container(structured, enum_to_str=True)


# What is there ------------------------------------------------------------------------------------


def test_no_run_there(tmp_path: Path) -> None:
    line = refused(tmp_path / "nothing")
    assert (
        line == f"resume={tmp_path / 'nothing'}: no run there, which is a folder with config.yaml"
    )
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("text", ["{", "- 1", "seed: many", "nonsense: 1", "\0"])
def test_settings_that_are_damaged(folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    assert refused(folder)


def test_a_run_that_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, "rounds=2")
    line = f"resume={folder}: that run has its 2 rounds; for more, give rounds=…"
    assert refused(folder) == line
    assert refused(folder, "rounds=2") == line
    assert refused(folder, "rounds=1") == line


def test_fewer_rounds_than_are_done(folder: Path) -> None:
    go_on(folder, before=3)
    assert refused(folder, "rounds=1").startswith(f"resume={folder}: that run has its 2 rounds")


def test_a_run_that_is_still_being_written(folder: Path) -> None:
    held = RunFolder.reopen(folder, wait=0)
    with pytest.raises(UserError) as raised:
        RunFolder.reopen(folder, wait=0.3)
    assert str(raised.value) == (
        f"{folder}: another process is writing this run; wait until it ends"
    )
    held.close()
    RunFolder.reopen(folder, wait=0).close()


HOLDS = """
import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_a_process_that_ends_is_waited_for(folder: Path, how: str) -> None:
    seconds = "0.5" if how == "ended" else "100"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder / "rounds.jsonl"), seconds],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is writing this run"):
            RunFolder.reopen(folder, wait=0)
        if how == "killed":
            process.kill()
        RunFolder.reopen(folder, wait=30).close()


def test_a_run_that_goes_on_holds_its_folder(folder: Path) -> None:
    run = prepare(tiny(f"resume={folder}"), folder, [])
    with pytest.raises(UserError, match="another process is writing this run"):
        RunFolder.reopen(folder, wait=0)
    run.folder.close()


@pytest.mark.parametrize("name", ["local", "pooled", "centralised"])
def test_a_baseline_is_no_run_that_can_be_gone_on_with(tmp_path: Path, name: str) -> None:
    written(tmp_path, tiny(*ONE, f"strategy={name}", "run_dir=x"))
    line = refused(tmp_path)
    assert line.startswith(f"strategy={name} is a baseline that one machine trains")
    check_federated(tiny())


# The command --------------------------------------------------------------------------------------

LOADS = """
import server.runtimes.local
from server.commands.train import main
"""


@pytest.fixture(scope="module")
def forked() -> Iterator[ForkedCommand]:
    with forked_command("utmp-train", LOADS) as command:
        yield command


@pytest.fixture
def command(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, forked: ForkedCommand
) -> Command:
    return partial(forked.run, tmp_path, tmp_path_factory.mktemp("streams"))


def test_the_command_goes_on_with_what_it_is_given_alone(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    """Its own defaults, of a run of another strategy and size, do not count."""
    shown = command("resume=run").shown
    assert "going on after round 1 of 3" in shown and "round 3" in shown
    assert left_in(folder)[1]["rounds"] == 3
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert (stored["strategy"]["name"], stored["model"]["width"]) == ("fedadam", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert command("resume=run").error == (
        "resume=run: that run has its 3 rounds; for more, give rounds=…"
    )


def test_the_command_names_what_differs(command: Command, folder: Path) -> None:
    before = files(folder)
    line = "in that run and 7 here; leave it out, or start a new run"
    assert command("resume=run", "seed=7").error == f"resume=run: seed is 1234 {line}"
    assert command("resume=run", "strategy=fedavg").error.startswith(
        "resume=run: strategy.name is fedadam in that run and fedavg here"
    )
    assert command("resume=run", "dataset=npz", "dataset.path=x").error.startswith(
        "resume=run: dataset.name is synthetic in that run and npz here"
    )
    assert command("resume=nowhere").error.startswith("resume=nowhere: no run there")
    assert files(folder) == before


def test_a_new_run_in_its_folder_is_told_of_resume(command: Command, folder: Path) -> None:
    error = command("run_dir=run", "dataset.num_items=120", "dataset.num_speakers=24").error
    assert error.endswith(f"choose another with run_dir=…, or go on with resume={folder}")


# The data -----------------------------------------------------------------------------------------


def write(path: Path, items: int = 60, width: int = 3) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        path,
        label=rng.normal(size=items),
        audio=rng.normal(size=(items, 4, width)),
        vision=rng.normal(size=(items, 4, 2)),
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"items": 80}, "that run had 6 validation items, and there are 8 now; start a new run"),
        ({"width": 5}, "has shape "),
    ],
)
def test_data_that_changed_meanwhile_are_named_with_the_difference(
    command: Command, tmp_path: Path, change: dict[str, int], named: str
) -> None:
    file, folder = tmp_path / "data.npz", tmp_path / "run"
    write(file)
    config = compose_config(
        "config",
        [
            *(each for each in TINY if not each.startswith("dataset.num_")),
            *ONE,
            "dataset=npz",
            f"dataset.path={file}",
            "partition=iid",
        ],
    )
    execute(prepare(config, folder), before=2)
    before = {name: content for name, content in files(folder).items() if name != "config.yaml"}
    write(file, **change)
    error = command("resume=run").error
    where = folder / "checkpoints" / "round-000001.safetensors"
    assert error.startswith(f"{where} does not fit: ") and named in error
    assert error.endswith("; start a new run")
    assert before.items() <= files(folder).items()
    # With the data as they were it goes on.
    write(file)
    assert "going on after round 1 of 2" in command("resume=run").shown
    assert left_in(folder)[1]["rounds"] == 2
