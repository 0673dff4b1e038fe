"""What all commands have in common, and `utmp-train` up to where training would begin."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from forked_command import Answer, Run, run_alone

from common.config import SCHEMAS, Config, Settings, compose
from server.commands.command import read_arguments

CONF = Path(__file__).resolve().parents[3] / "conf"

COMMAND = "utmp-train"
LOADS = """
import server.runtimes.local
from server.commands.train import main

server.runtimes.local.run_locally = lambda run: print("would train")
"""


# The installed command --------------------------------------------------------------------------


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_help_has_every_setting_with_its_comment_and_two_examples(
    schema: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_arguments(schema, ["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    text = (
        CONF / schema.folder.removeprefix("conf").strip(".") / f"{schema.file}.yaml"
    ).read_text()
    settings = yaml.safe_load(text)
    for name in settings.keys() - {"defaults", "hydra"}:
        assert re.search(rf"^{name}:", shown, re.M)
    body = text.partition("\ndefaults:")[2]
    comments = [line for line in body.partition("\nhydra:")[0].splitlines() if "# " in line]
    assert [line for line in comments if line not in shown.splitlines()] == []
    command = "utmp-train" if schema is Config else f"utmp-{schema.file}"
    examples = re.findall(rf"^  ({command} .*)$", shown, re.M)
    assert len(examples) == 2
    assert "hydra/" not in shown and "defaults" not in shown.partition("these are the defaults")[2]
    for example in examples:
        assert compose(schema, shlex.split(example.partition(" > ")[0])[1:])
    groups = {item.name for item in fields(schema) if (CONF / item.name).is_dir()}
    offered = set(re.findall(r"^  (\w+)=", shown, re.M)) - {"experiment"}
    assert offered == (groups if schema.folder == "conf" else set())


def test_help_of_the_installed_command_lists_choices(tmp_path: Path) -> None:
    shown = run_alone(tmp_path, "utmp-train", "--help").shown
    assert "  runtime=processes (the default), sequential, simulation\n" in shown
    assert list(tmp_path.iterdir()) == []


HEAVY = (
    "torch numpy cryptography rich pyarrow sklearn onnx matplotlib flwr uvicorn fastapi scipy av"
)


@pytest.mark.parametrize(
    ("command", "setting", "meant"),
    [
        ("compose", "client.audio=2", ""),
        ("credentials", "host=a", "; did you mean hosts?"),
        ("evaluate", "datasett=b", "; did you mean dataset?"),
        ("export", "subset=[b]", "; did you mean subsets?"),
        ("extract", "audio.stepp=1", "; did you mean audio.step"),
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
    shown = loaded("dataset=file", "dataset.path=ok.npz", "run_dir=here").shown
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
        (["dataset=file", f'dataset.path="{NAME}"'], f"{NAME} does not exist"),
        (["dataset.test_fraction=0"], "there are no test items; raise dataset.test_fraction above"),
        (["experiment=mosei_raw"], "dataset.path is required"),
        (["--rounds", "3"], "there is no option --rounds; settings are given as NAME=VALUE"),
        (["--config-dir", "none"], "Additional config directory '"),
        (["strategy=null"], "a group, such as strategy, takes the name of a choice"),
        (["seed=1,2"], "seed=1,2: several values need --multirun"),
        (["hydra.run.dir=x"], "hydra.run.dir is not used here; give run_dir=… instead"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    loaded: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert loaded("run_dir=here", *arguments).error.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_the_installed_command_s_too(loaded: Run, tmp_path: Path) -> None:
    assert run_alone(tmp_path, COMMAND, "rounds=0").error == loaded("rounds=0").error
