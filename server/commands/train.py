"""`utmp-train`: the whole federation on this machine, in processes of its own or on Ray."""

import os

# Before Flower is imported: no telemetry, no look for updates; before Ray is: no advice.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import Config, ConsoleStyle, Runtime, setting
from server.commands.command import (
    given_overrides,
    hydra_command,
    run_folder,
    swept_overrides,
)
from server.run.interruption import interruptible

if TYPE_CHECKING:
    from server.run.run import Run


def show_sweep(folders: list[Path]) -> None:
    """Print a table of the runs of a sweep, and write it beside them."""
    from common.atomic import atomic_file
    from server.report.overview import TABLE, overview, runs_csv
    from server.report.page import rich_tables
    from server.report.records import read_result
    from server.terminal import Terminal

    terminal, results = Terminal(), list(map(read_result, folders))
    place = folders[0].parent
    with atomic_file(place / TABLE) as aside:
        aside.write_bytes(runs_csv(results))
    section = overview(results)
    terminal.tell(section.title, "bold")
    for part in rich_tables(section.panels[0], terminal.console.width):
        terminal.console.print(part)
    place = terminal.place(place)
    terminal.tell(f"table: {place / TABLE}")
    terminal.tell(f"next: utmp-report {setting('runs', place)} {setting('out', place / 'report')}")


@hydra_command(Config, show_sweep)
def main(config: Config) -> Path:
    """Train a federation; return the folder of its run."""
    from server.app import prepare
    from server.terminal import Terminal

    if (jobs := swept_overrides()) and config.console is ConsoleStyle.text:
        Terminal().tell(f"== {' '.join(jobs)}", "bold")
    train: Callable[[Run], object]
    if config.strategy.setting != "federated":
        from server.baselines import find_baseline
        from server.baselines import run_baseline as train

        find_baseline(config.strategy)
    elif config.runtime.name is Runtime.simulation:
        from server.runtimes.simulation import simulate as train
    else:
        from server.runtimes.local import run_locally as train
    run = prepare(config, run_folder(config), given_overrides())
    with interruptible() as run.check:
        train(run)
    return run.folder.path
