"""`utmp-export` as its users meet it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_command import ForkedCommand, forked_command

from common.config import ExportConfig, compose
from common.errors import UserError


@pytest.fixture(scope="module")
def command() -> Iterator[ForkedCommand]:
    with forked_command("utmp-export", "from server.commands.export import main\n") as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], "model is required"),
        (["model=a", "out=''"], "out is required"),
        (["model=a", "subset=[b]"], "did you mean subsets"),
        (["model=a", "subsets=b"], "subsets"),
    ],
)
def test_what_is_mistyped_is_refused(overrides: list[str], reason: str) -> None:
    config = compose(ExportConfig, ["model=a", "subsets=[language,language+audio]"])
    assert config == ExportConfig("a", "onnx", False, ["language", "language+audio"])
    with pytest.raises(UserError, match=reason):
        compose(ExportConfig, overrides)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named(
    command: ForkedCommand, tmp_path: Path, package: str
) -> None:
    answer = command.run(tmp_path, tmp_path, "model=runs/a", missing=(package,))
    assert answer.error == f"utmp-export needs {package}: pip install 'ha-fedformer[export]'"


def test_a_model_that_is_not_there_is_one_line(command: ForkedCommand, tmp_path: Path) -> None:
    answer = command.run(tmp_path, tmp_path, "model=runs/a")
    assert answer.error == "model file runs/a does not exist"
    assert not (tmp_path / "onnx").exists()


def test_a_mistake_is_reported_before_anything_heavy_is_loaded(
    command: ForkedCommand, tmp_path: Path
) -> None:
    answer = command.run(tmp_path, tmp_path, "out=a", missing=("torch", "onnx", "onnxruntime"))
    assert answer.error.startswith("model is required")
