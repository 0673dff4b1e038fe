"""The `flwr` command, as the scripts beside it use it."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

#: A section of flower.toml.
CONNECTION = os.environ.get("CONNECTION", "federation")


def connect() -> None:
    """Tell `flwr` its connections, in a folder to which it may write."""
    home = Path(os.environ["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("flower.toml"), home / "config.toml")


def flwr(*arguments: str) -> dict[str, Any]:
    """Run a command with `--format json` and return what it answers, success or not."""
    done = subprocess.run(
        ["flwr", *arguments, "--format", "json"], capture_output=True, text=True, check=False
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        answer = {"success": False, "error-message": done.stderr or done.stdout}
    return answer


def reason(answer: dict[str, Any]) -> str:
    """Return in one line why a command failed."""
    return " ".join(str(answer.get("error-message", answer)).split())
