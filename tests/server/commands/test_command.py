"""`utmp-train` as its users meet it, up to where training would begin.

What is refused before the libraries are loaded runs as the installed command. The rest would load
them, for seconds, once a test; one process loads them once and forks for each command line.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forked_command import Answer, ForkedCommand, forked_command
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType

from server.commands.command import _group_options

COMMAND = Path(sys.executable).with_name("utmp-train")

LOADS = """
import server.runtimes.local
from server.commands.train import main

train = server.runtimes.local.run_locally


def run_locally(run):
    train(run) if run.config.runtime.name == "sequential" else print("would train")


server.runtimes.local.run_locally = run_locally
"""


Run = Callable[..., Answer]

FEW = "dataset.num_items=200"


@pytest.fixture
def command(tmp_path: Path) -> Run:
    """Run the installed command in an empty folder."""

    def run(*arguments: str) -> Answer:
        done = subprocess.run(
            [COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def forked() -> Iterator[ForkedCommand]:
    with forked_command("utmp-train", LOADS) as command:
        yield command


@pytest.fixture
def loaded(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, forked: ForkedCommand) -> Run:
    """Run the command in an empty folder, with its libraries loaded already."""
    return partial(forked.run, tmp_path, tmp_path_factory.mktemp("streams"))


def write(folder: Path, name: str, **arrays: Any) -> str:
    """Write a file of twenty items in ten groups; None takes an array out."""
    content = {
        "label": np.arange(20.0),
        "audio": np.ones((20, 4, 3)),
        "video": np.repeat(np.arange(10), 2),
        **arrays,
    }
    np.savez(folder / name, **{key: array for key, array in content.items() if array is not None})
    return name


# The installed command --------------------------------------------------------------------------


def test_help(command: Run) -> None:
    answer = command("--help")
    assert (answer.status, answer.stderr) == (0, "")
    assert "Configuration groups" in answer.stdout
    assert "Override anything in the config (foo.bar=value)" in answer.stdout
    choices = next(line for line in answer.stdout.splitlines() if line.startswith("strategy: "))
    offered = set(choices.removeprefix("strategy: ").split(", "))
    assert {"fedavg", "hierarchical", "fednova", "centralised"} <= offered
    assert "runtime: processes, sequential, simulation" in answer.stdout


@pytest.mark.parametrize("group", ["", "strategy", "dataset", "hydra", "hydra/launcher"])
@pytest.mark.parametrize("kind", [ObjectType.CONFIG, ObjectType.GROUP])
def test_help_lists_groups_as_hydra_does(group: str, kind: ObjectType) -> None:
    with initialize_config_module("conf", version_base=None):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        _, copied = loader._parse_overrides_and_create_caching_repo(None, [])
        assert _group_options(loader, group, kind) == copied.get_group_options(group, kind)


def test_the_configuration_is_printed_as_yaml(command: Run, tmp_path: Path) -> None:
    answer = command("--cfg", "job", "rounds=7", "clients.audio=2", "strategy=fedavg")
    assert (answer.status, answer.stderr) == (0, "")
    printed = yaml.safe_load(answer.stdout)
    assert printed["rounds"] == 7
    assert printed["clients"] == {"default": None, "audio": 2}
    assert printed["strategy"]["sampler"]["name"] == "last"
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


def test_an_unknown_setting(command: Run, tmp_path: Path) -> None:
    error = command("client.lrr=1").error
    assert error.startswith("there is no setting 'client.lrr'; did you mean client.lr")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_type(command: Run) -> None:
    error = command("rounds=many").error
    assert "rounds" in error
    assert "'many'" in error


# The same, with its libraries loaded ------------------------------------------------------------


def test_both_ways_of_running_agree(command: Run, loaded: Run) -> None:
    assert command("rounds=0").error == loaded("rounds=0").error
    assert loaded("rounds=0").error == "rounds=0: expected a number above 0"


def test_what_fits_would_train(loaded: Run, tmp_path: Path) -> None:
    file = write(tmp_path, "ok.npz")
    answer = loaded("dataset=npz", f"dataset.path={file}", "run_dir=here")
    assert (answer.status, answer.stdout, answer.stderr) == (0, "would train\n", "")
    config = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())
    assert config["dataset"]["path"] == file
    assert config["run_dir"] == "here"


def test_clients_may_run_in_the_command_s_own_process(loaded: Run, tmp_path: Path) -> None:
    small = [f"model.{name}=2" for name in ("width", "heads", "layers", "decoder_layers")]
    short = ("rounds=2", "clients.default=1", "client.local_epochs=1", "client.device=cpu")
    answer = loaded("runtime=sequential", "run_dir=here", FEW, *small, *short)
    assert answer.status == 0
    assert "round 2" in answer.stdout and "run folder: " in answer.stdout
    assert len((tmp_path / "here" / "rounds.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "here" / "summary.json").exists()


def test_a_modality_without_clients(loaded: Run) -> None:
    error = loaded("clients.language=0", FEW).error
    assert error.startswith("modality 'language' has no client; set clients.language")


def test_clients_of_an_unknown_modality(loaded: Run) -> None:
    error = loaded("clients.smell=2", FEW).error
    assert error == (
        "clients.smell: the dataset has no modality 'smell'; it has language, audio, vision"
    )


def test_a_file_that_is_not_there(loaded: Run) -> None:
    error = loaded("dataset=npz", "dataset.path=nope.npz").error
    assert error == "dataset file nope.npz does not exist"


def test_a_file_without_labels(loaded: Run, tmp_path: Path) -> None:
    file = write(tmp_path, "unlabelled.npz", label=None)
    error = loaded("dataset=npz", f"dataset.path={file}").error
    assert error == "unlabelled.npz has no array 'label' (the labels); it has audio, video"


def test_fewer_groups_than_clients(loaded: Run, tmp_path: Path) -> None:
    file = write(tmp_path, "few.npz")
    error = loaded(
        "dataset=npz", f"dataset.path={file}", "dataset.group=video", "clients.default=8"
    ).error
    assert error.startswith("8 clients are too many for the train items")
    assert "use fewer clients" in error


def test_widths_that_differ_between_files(loaded: Run, tmp_path: Path) -> None:
    files = [write(tmp_path, "a.npz"), write(tmp_path, "b.npz", audio=np.ones((20, 4, 5)))]
    error = loaded("dataset=npz", f"dataset.path=[{','.join(files)}]").error
    assert error == "audio is 3 wide in a.npz but 5 wide in b.npz"


def test_nothing_to_evaluate_on(loaded: Run) -> None:
    error = loaded(FEW, "dataset.test_fraction=0").error
    assert error == "there are no test items; raise dataset.test_fraction above 0"


def test_an_experiment_without_its_file(loaded: Run) -> None:
    error = loaded("experiment=mosei_raw").error
    assert error.startswith("dataset.path is required")


def test_a_name_is_shown_as_it_was_typed(loaded: Run) -> None:
    name = "[b]a:key:b[/b]" + "a" * 200 + " " + "b" * 40 + ".npz"
    error = loaded("dataset=npz", f'dataset.path="{name}"').error
    assert error == f"dataset file {name} does not exist"


# The run folder ---------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_folder_that_holds_a_run_is_refused(loaded: Run, tmp_path: Path) -> None:
    assert loaded("run_dir=taken", FEW).status == 0
    error = loaded("run_dir=taken", FEW, "rounds=7").error
    assert str(tmp_path / "taken") in error
    assert "holds a run already" in error
    assert "run_dir" in error


def test_a_refused_run_leaves_the_other_as_it_was(loaded: Run, tmp_path: Path) -> None:
    loaded("run_dir=taken", FEW)
    before = contents(tmp_path / "taken")
    loaded("run_dir=taken", FEW, "rounds=7")
    assert contents(tmp_path / "taken") == before


def test_a_folder_that_cannot_be_made(loaded: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file" in loaded("run_dir=file/run", FEW).error


def test_a_run_that_does_not_start_leaves_no_folder(loaded: Run, tmp_path: Path) -> None:
    loaded("dataset=npz", "dataset.path=nope.npz", "run_dir=here")
    assert list(tmp_path.iterdir()) == []
