"""What all commands have in common, and `utmp-train` up to where training would begin."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from forked_command import Answer, Run, run_alone
from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType

from server.commands.command import list_group

COMMAND = "utmp-train"
LOADS = """
import server.runtimes.local
from server.commands.train import main

server.runtimes.local.run_locally = lambda run: print("would train")
"""


# The installed command --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["Override anything in the config (foo.bar=value)", "runtime: processes, seque"]),
        ("prepare", ["partition: dirichlet", "max_seq_len: 50"]),
        ("evaluate", ["side: test"]),
        ("predict", ["out: predictions.csv"]),
        ("report", ["baseline: fedavg"]),
        ("serve", ["port: 8100", "max_body_mb: 16"]),
    ],
)
def test_help(tmp_path: Path, command: str, words: list[str]) -> None:
    shown = run_alone(tmp_path, f"utmp-{command}", "--help").shown
    assert [word for word in words if word not in shown] == []
    assert "npz_schema" not in shown  # of Hydra's groups, those that can be chosen
    assert list(tmp_path.iterdir()) == []
    if command == "train":
        choices = next(line for line in shown.splitlines() if line.startswith("strategy: "))
        offered = set(choices.removeprefix("strategy: ").split(", "))
        assert {"fedavg", "hierarchical", "fednova", "centralised"} <= offered


HEAVY = "torch numpy cryptography rich pyarrow sklearn onnx matplotlib flwr uvicorn fastapi scipy"


@pytest.mark.parametrize(
    ("command", "setting", "meant"),
    [
        ("compose", "client.audio=2", ""),
        ("credentials", "host=a", "; did you mean hosts?"),
        ("evaluate", "datasett=b", "; did you mean dataset?"),
        ("export", "subset=[b]", "; did you mean subsets?"),
        ("predict", "modalitys=a", "; did you mean modalities?"),
        ("prepare", "validation_fractoin=0.1", "; did you mean validation_fraction?"),
        ("report", "rums=x", "; did you mean runs?"),
        ("serve", "modle=b", "; did you mean model?"),
        ("train", "client.lrr=1", "; did you mean client.lr"),
    ],
)
def test_a_mistyped_setting_is_one_line_and_loads_no_library(
    tmp_path: Path, command: str, setting: str, meant: str
) -> None:
    script = f"""
import atexit, sys
from server.commands.{command} import main
atexit.register(lambda: print(*{set(HEAVY.split())} & set(sys.modules)))
sys.argv = ["utmp-{command}", "{setting}"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    answer = Answer(done.returncode, done.stdout.strip(), done.stderr)
    assert answer.error.startswith(f"there is no setting '{setting.partition('=')[0]}'{meant}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", ["", "strategy", "dataset", "hydra", "hydra/launcher"])
@pytest.mark.parametrize("kind", [ObjectType.CONFIG, ObjectType.GROUP])
def test_help_lists_groups_as_hydra_does(group: str, kind: ObjectType) -> None:
    with initialize_config_module("conf", version_base=None):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        _, copied = loader._parse_overrides_and_create_caching_repo(None, [])
        assert list_group(loader, group, kind) == copied.get_group_options(group, kind)


# The same, with its libraries loaded ------------------------------------------------------------


def test_the_configuration_is_printed_as_yaml(loaded: Run, tmp_path: Path) -> None:
    printed = yaml.safe_load(
        loaded("--cfg", "job", "rounds=7", "clients.audio=2", "strategy=fedavg").shown
    )
    assert printed["rounds"] == 7
    assert printed["clients"] == {"default": None, "audio": 2}
    assert printed["strategy"]["sampler"]["name"] == "last"
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


def test_what_fits_would_train(loaded: Run, tmp_path: Path) -> None:
    arrays = {"label": np.arange(20.0), "audio": np.ones((20, 4, 3)), "video": np.arange(20) // 2}
    np.savez(tmp_path / "ok.npz", **arrays)
    shown = loaded("dataset=npz", "dataset.path=ok.npz", "run_dir=here").shown
    assert shown == "would train\n"
    config = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())
    assert (config["dataset"]["path"], config["run_dir"]) == ("ok.npz", "here")


#: A name that nothing may wrap, cut or take for markup.
NAME = "[b]a:key:b[/b]" + "a" * 200 + " " + "b" * 40 + ".npz"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rounds=many"], "rounds=many: Value 'many'"),
        (["rounds=0"], "rounds=0: expected a number above 0"),
        (["clients.smell=2"], "clients.smell: the dataset has no modality 'smell'; it has langu"),
        (["dataset=npz", f'dataset.path="{NAME}"'], f"dataset file {NAME} does not exist"),
        (["dataset.test_fraction=0"], "there are no test items; raise dataset.test_fraction above"),
        (["experiment=mosei_raw"], "dataset.path is required"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    loaded: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert loaded(*arguments, "run_dir=here").error.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_the_installed_command_s_too(loaded: Run, tmp_path: Path) -> None:
    assert run_alone(tmp_path, COMMAND, "rounds=0").error == loaded("rounds=0").error
