"""Submit a run, show what it prints, and exit with 0 if it succeeded.

    train.py OVERRIDE…      as for utmp-train, after those in the variable OVERRIDES

Whoever stops this leaves the run as it is.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flower_command import CONNECTION, connect, flwr, reason

#: Seconds between looks at a run that has printed its last line.
PAUSE = 1


def main() -> int:
    """Submit, follow, judge."""
    connect()
    overrides = [*shlex.split(os.environ.get("OVERRIDES", "")), *sys.argv[1:]]
    answer = submit(overrides)
    if not answer.get("success"):
        print(f"error: {reason(answer)}", file=sys.stderr)
        return 1
    run = str(answer["run-id"])
    print(f"run {run}")
    subprocess.run(["flwr", "log", run, CONNECTION, "--stream"], check=False)
    status = final_status(run)
    print(f"run {run}: {status}")
    return 0 if status == "finished:completed" else 1


def submit(overrides: list[str]) -> dict[str, object]:
    """Start a run of the app in this image."""
    with tempfile.TemporaryDirectory() as folder:
        # As a file: on a command line Flower takes no value with both kinds of quotes.
        config = Path(folder) / "run.toml"
        text = json.dumps(shlex.join(overrides), ensure_ascii=False)
        config.write_text(f"overrides = {text}\n", encoding="utf-8")
        app = str(Path(__file__).parents[1])
        return flwr("run", app, CONNECTION, "--run-config", str(config))


def final_status(run: str) -> str:
    """Wait until a run has ended; a stream of its lines may break before."""
    while True:
        answer = flwr("list", CONNECTION, "--run-id", run)
        runs = answer.get("runs")
        if not runs:
            return reason(answer)
        status = str(runs[0]["status"])
        if status.startswith("finished"):
            return status
        time.sleep(PAUSE)


if __name__ == "__main__":
    sys.exit(main())
