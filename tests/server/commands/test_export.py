"""`utmp-export` as its users meet it."""

from pathlib import Path

import pytest
from forked_command import Run

COMMAND = "utmp-export"
LOADS = "from server.commands.export import main\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "model is required"),
        (["model=a", "out=''"], "out is required"),
        (["model=a", "subsets=b"], "subsets"),
        (["model=runs/a"], "model file runs/a does not exist"),
    ],
)
def test_a_mistake_is_one_line(loaded: Run, tmp_path: Path, given: list[str], message: str) -> None:
    assert loaded(*given).error.startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named(loaded: Run, package: str) -> None:
    error = loaded("model=runs/a", missing=(package,)).error
    assert error == f"utmp-export needs {package}: pip install 'ha-fedformer[export]'"
