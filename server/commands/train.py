"""`utmp-train`: the whole federation on this machine, in processes of its own or on Ray."""

import os

# Before Flower is imported: no telemetry, no look for updates; before Ray is: no advice.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from collections.abc import Callable
from typing import TYPE_CHECKING

from common.config import Config, Runtime
from server.commands.command import given_overrides, hydra_command, run_folder
from server.run.interruption import interruptible

if TYPE_CHECKING:
    from server.run.run import Run


@hydra_command(Config)
def main(config: Config) -> None:
    """Train a federation."""
    from server.app import prepare

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
