"""The operator's commands, in a container beside the SuperLink.

    operate.py register          register each public key NAME.pub below /sites as NAME
    operate.py train OVERRIDE…   as for utmp-train, after those in the variable OVERRIDES

`train` shows what the run prints and exits with 0 if it succeeded. Stopping it does not stop the
run.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: A section of flower.toml.
CONNECTION = os.environ.get("CONNECTION", "federation")


def flwr(*arguments: str) -> dict[str, Any]:
    """Run a command with `--format json`; return its answer, which may report a failure."""
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


def register() -> int:
    """Register every key; a key that is registered already is fine."""
    keys, failed = sorted(Path("/sites").rglob("*.pub")), 0
    if not keys:
        sys.exit("error: no public key below /sites")
    for key in keys:
        answer = flwr("supernode", "register", str(key), CONNECTION, "--name", key.stem)
        if answer.get("success"):
            print(f"{key.stem}: registered")
        elif "already in use" in reason(answer):
            print(f"{key.stem}: registered before")
        else:
            print(f"error: {key.stem}: {reason(answer)}", file=sys.stderr)
            failed = 1
    return failed


def train(overrides: list[str]) -> int:
    """Submit a run of the app in this image, follow it, and wait for its end."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as config:
        # As a file: on a command line Flower takes no value with both kinds of quotes.
        config.write(f"overrides = {json.dumps(shlex.join(overrides), ensure_ascii=False)}\n")
        config.flush()
        app = str(Path(__file__).parents[1])
        answer = flwr("run", app, CONNECTION, "--run-config", config.name)
    if not answer.get("success"):
        sys.exit(f"error: {reason(answer)}")
    run, status = str(answer["run-id"]), ""
    print(f"run {run}", flush=True)
    subprocess.run(["flwr", "log", run, CONNECTION, "--stream"], check=False)
    # The stream of lines may break before the run ends.
    while not status.startswith("finished"):
        time.sleep(1)
        answer = flwr("list", CONNECTION, "--run-id", run)
        if not answer.get("runs"):
            sys.exit(f"error: {reason(answer)}")
        status = str(answer["runs"][0]["status"])
    print(f"run {run}: {status}")
    return 0 if status == "finished:completed" else 1


if __name__ == "__main__":
    home = Path(os.environ["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("flower.toml"), home / "config.toml")
    if sys.argv[1] == "register":
        sys.exit(register())
    sys.exit(train([*shlex.split(os.environ.get("OVERRIDES", "")), *sys.argv[2:]]))
