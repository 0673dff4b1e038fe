"""`utmp-train`: the whole federation on this machine, in processes of its own or on Ray."""

import os

# Before Flower is imported: no telemetry, no look for updates; before Ray is: no advice.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from typing import TYPE_CHECKING

from common.config import Config, Runtime
from server.commands.command import given_overrides, hydra_command, run_folder
from server.run.interruption import Interruption

if TYPE_CHECKING:
    from server.run.run import Run


@hydra_command(Config)
def main(config: Config) -> None:
    """Train a federation."""
    # Imported here, so that --help and a mistyped setting answer at once.
    from server.app import prepare

    run = prepare(config, run_folder(config), given_overrides())
    with Interruption() as interruption:
        run.check = interruption.check
        _train(run)


def _train(run: "Run") -> None:
    if run.config.strategy.setting != "federated":
        from server.baselines.baseline import run_baseline

        run_baseline(run)
    elif run.config.runtime.name is Runtime.simulation:
        from server.runtimes.simulation import simulate

        simulate(run)
    else:
        from server.runtimes.local import run_locally

        run_locally(run)


if __name__ == "__main__":
    main()
