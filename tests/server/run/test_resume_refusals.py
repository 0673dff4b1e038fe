"""What cannot be resumed: one line says why, and the run stays as it is."""

import fcntl
import gc
import json
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from broken_runs import ONE, RUNS, begin, damage, execute, go_on
from data_checks import files
from forked_command import forked_command
from omegaconf import OmegaConf
from tiny_runs import SMALL, left_in, tiny

from common.config import Config, compose, config_of_settings
from common.errors import UserError
from server.app import prepare
from server.run.folder import (
    CONFIG,
    ROUNDS,
    RunFolder,
    plain_settings,
    read_settings,
    resumed_config,
)
from server.runtimes.local import run_locally

Make = Callable[..., Path]


def refused(folder: Path, *given: str) -> str:
    """Return the line that a resume is refused with, which leaves the run as it is."""
    before = files(folder)
    with pytest.raises(UserError) as raised:
        go_on(folder, *given)
    assert files(folder) == before
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
        (["model=small"], "model.attention_dropout.language is 0.1 in that run and nothing here"),
        (["+clients.audio=2"], "clients.audio is not set in that run and 2 here"),
        (["strategy=local"], "strategy.name is fedadam in that run and local here"),
        (["seed=1234", "client.lr=0.5"], "client.lr is 0.001 in that run and 0.5 here"),
        (["experiment=iid"], "fusion.name is product_of_experts in that run and auto here"),
    ],
)
def test_a_setting_that_differs_is_named(interrupted: Make, given: list[str], named: str) -> None:
    folder = interrupted()
    line = refused(folder, *given)
    assert line.startswith(f"resume={folder}: {named}; ") and "start a new run" in line


def test_settings_that_are_given_as_they_were_are_taken(interrupted: Make, tmp_path: Path) -> None:
    folder = interrupted()
    given = [f"resume={folder}", "strategy=fedadam", "seed=1234", "model.width=4"]
    run = prepare(tiny(*given), tmp_path / "elsewhere", given)
    assert (run.folder.path, run.config.rounds) == (folder, 3)
    with pytest.raises(UserError, match="another process is writing this run"):
        RunFolder.reopen(folder, wait=0)


def test_without_a_list_of_overrides_all_is_compared(interrupted: Make, tmp_path: Path) -> None:
    folder = interrupted()

    def asked(*overrides: str) -> Config:
        return tiny(*ONE, f"resume={folder}", "rounds=3", *overrides)

    before = files(folder)
    with pytest.raises(UserError, match=r"fusion\.name is product_of_experts in that run and auto"):
        prepare(asked(), tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"clients\.default is 1 in that run and 2 here"):
        prepare(asked(*RUNS["adam"], "clients.default=2"), tmp_path / "elsewhere")
    assert files(folder) == before
    run = prepare(asked(*RUNS["adam"], "runtime.node_timeout=3"), tmp_path / "elsewhere")
    assert run.config.runtime.node_timeout == 3


def written(folder: Path, config: Config) -> dict[str, object]:
    """Write a configuration as a run does, and read it."""
    run = RunFolder(folder)
    run.write_config(config)
    run.close()
    return read_settings(folder / CONFIG)


def test_what_is_free_may_differ_and_the_rest_of_its_group_stays(tmp_path: Path) -> None:
    former = ["runtime=sequential", "runtime.node_timeout=5", "checkpoint.deliver=last"]
    free = ["rounds=40", "runtime.absent=abort", "checkpoint.keep=7", "tracking=mlflow"]
    free += ["console=json", "resume=x", "patience=3"]
    written(tmp_path, compose(Config, [*former, "run_dir=x"]))
    given = [*free, "run_dir=y"]
    config = resumed_config(tmp_path / CONFIG, compose(Config, given), given)
    assert config == compose(Config, [*former, *free, "run_dir=x"])
    assert (config.runtime.name, config.checkpoint.deliver) == ("sequential", "last")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["dataset=file", "dataset.path=[a.npz,b.npz]", "dataset.tabular=[audio]"],
        ["dataset=shards", "dataset.path=s", "partition=size", "clients.audio=4"],
        ["strategy=fedadam", "partition=dirichlet", "+model.attention_dropout.audio=0.2"],
    ],
)
def test_a_configuration_is_read_as_it_was_written(tmp_path: Path, overrides: list[str]) -> None:
    config = compose(Config, [*overrides, "run_dir=x"])
    settings = written(tmp_path, config)
    assert set(settings) == {item.name for item in fields(Config)}
    assert "${" not in (tmp_path / CONFIG).read_text()
    assert config_of_settings(settings) == config
    structured = OmegaConf.structured(config)
    assert plain_settings(config) == OmegaConf.to_container(structured, enum_to_str=True)


# What is there ------------------------------------------------------------------------------------


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content.encode("latin-1")) and None


def cut_before(words: str) -> Callable[[Path], None]:
    """Cut the settings short, at the end of a line."""

    def change(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(path.read_text().partition(words)[0] + "\n")

    return change


#: What a round scores.
SCORED = ("language", "vision", "audio", "multimodal")


def change_round(number: int, **changes: object) -> Callable[[Path], None]:
    """Change some keys of the record of a round."""

    def change(folder: Path) -> None:
        records = [json.loads(line) for line in (folder / ROUNDS).read_text().splitlines()]
        records[number - 1] |= changes
        (folder / ROUNDS).write_text("".join(json.dumps(record) + "\n" for record in records))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((write(CONFIG, text), CONFIG) for text in ("{", "- 1", "\0")),
        (write(CONFIG, "seed: many"), f"{CONFIG} cannot be used: seed: Value 'many'"),
        (write(CONFIG, "nonsense: 1"), f"{CONFIG} cannot be used: nonsense: Key 'nonsense'"),
        (
            cut_before("\nruntime:"),
            f"{CONFIG} is damaged: it ends before checkpoint",
        ),
        *(
            (write(ROUNDS, text), f"{ROUNDS} is damaged: ")
            for text in ("", "{}\n", '{"round": 2}\n', "[1]\n", "\xff\n")
        ),
        *(
            (change_round(2, validation=scores), f"{ROUNDS} is damaged: round 2 lacks")
            for scores in (
                {},
                {"multimodal": {"corr": 0.5}},
                {name: {} for name in SCORED},
                {name: {"corr": 0.5} for name in SCORED},
                {name: {"mae": 0.5} for name in SCORED},
            )
        ),
        (change_round(1, validation={}), f"{ROUNDS} is damaged: round 1 lacks"),
        (change_round(2, validation=3), f"{ROUNDS} is damaged: validation: "),
        (change_round(1, train_loss={"audio": "low"}), f"{ROUNDS} is damaged: train_loss.audio: "),
        (
            lambda folder: [*map(damage, (folder / "checkpoints").iterdir())],
            "can be read; start a new run",
        ),
        (lambda folder: (folder / CONFIG).unlink(), "no run there, which is a folder with config"),
    ],
)
def test_damage_is_refused(interrupted: Make, change: Callable[[Path], None], words: str) -> None:
    folder = interrupted(rounds=2)
    change(folder)
    assert words in refused(folder)


def test_fewer_rounds_than_are_done(interrupted: Make, whole: Make) -> None:
    for given in ([], ["rounds=3"], ["rounds=1"]):
        line = refused(whole(), *given)
        assert line == f"resume={whole()}: that run has its 3 rounds; for more, give rounds=…"
    assert "that run has its 2 rounds" in refused(interrupted(rounds=2), "rounds=1")


def test_patience_that_is_at_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin(folder, *RUNS["overshooting"], "rounds=3", "patience=1")
    for given in ([], ["rounds=9"], ["patience=1"]):
        line = refused(folder, *given)
        assert line == (
            f"resume={folder}: patience=1 ends that run after its 2 rounds; to go on, give a "
            "larger one, or patience=null"
        )


def test_a_baseline_cannot_be_resumed(tmp_path: Path) -> None:
    written(tmp_path, tiny(*ONE, "strategy=pooled", "run_dir=x"))
    assert refused(tmp_path).startswith("strategy=pooled is a baseline that one machine trains")


def test_what_this_machine_lacks_costs_no_round(interrupted: Make, whole: Make) -> None:
    folder = interrupted(rounds=2)
    given = [f"resume={folder}", "runtime.client_cpus=4096"]
    run = prepare(tiny(*given), folder.parent / "elsewhere", given)
    with pytest.raises(UserError, match=r"^runtime\.client_cpus=4096: this machine has "):
        run_locally(run)
    run.folder.close()
    go_on(folder)
    assert left_in(folder) == left_in(whole())


def test_a_process_that_ends_is_waited_for(interrupted: Make) -> None:
    folder = interrupted()
    with (folder / ROUNDS).open("r+") as file:  # as another process would: by a lock of its own
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"^{folder}: another process is writing this run"):
            RunFolder.reopen(folder, wait=0)
        threading.Timer(0.5, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        RunFolder.reopen(folder, wait=30).close()


# The command, which has defaults of another strategy and size -------------------------------------

FEW = "dataset.num_items=200"
LOADS = "import server.runtimes.local\nfrom server.commands.train import main\n"


def test_the_command(interrupted: Make, tmp_path: Path) -> None:
    folder, streams = interrupted(rounds=2), tmp_path / "streams"
    streams.mkdir()
    before = files(folder)
    with forked_command("utmp-train", LOADS) as command:
        for given, error in [
            (["resume=run", "dataset=file", "dataset.path=x"], "dataset.name is synthetic in that"),
            (["resume=nowhere"], "resume=nowhere: no run there"),
            (["run_dir=run", FEW], f"choose another with run_dir=…, or go on with resume={folder}"),
        ]:
            assert error in command.run(tmp_path, streams, *given).error
        assert files(folder) == before
        shown = command.run(tmp_path, streams, "resume=run").shown
        assert "going on after round 2 of 3" in shown and "round 3" in shown
    assert left_in(folder)[1]["rounds"] == 3
    stored = yaml.safe_load((folder / CONFIG).read_text())
    assert (stored["strategy"]["name"], stored["model"]["width"]) == ("fedadam", 4)


# The data -----------------------------------------------------------------------------------------


def write_npz(path: Path, items: int = 60, width: int = 3) -> None:
    shapes = {"label": (items,), "audio": (items, 4, width), "vision": (items, 4, 2)}
    normal = np.random.default_rng(0).normal
    np.savez(path, **{name: normal(size=shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"items": 80}, "that run had 6 validation items, and there are 8 now"),
        ({"width": 5}, "has shape "),
    ],
)
def test_changed_data_are_named_and_how(tmp_path: Path, change: dict[str, int], named: str) -> None:
    file, folder = tmp_path / "data.npz", tmp_path / "run"
    write_npz(file)
    overrides = [*SMALL, *ONE, "dataset=file", f"dataset.path={file}", "partition=iid"]
    execute(prepare(compose(Config, overrides), folder), before=2)
    (before := files(folder)).pop(CONFIG)
    write_npz(file, **change)
    where = folder / "checkpoints" / "round-000001.safetensors"
    with pytest.raises(UserError, match=f"^{where} does not fit: .*{named}.*; start a new run$"):
        go_on(folder)
    assert before.items() <= files(folder).items()
    # With the data as they were it goes on.
    write_npz(file)
    go_on(folder)
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 2
