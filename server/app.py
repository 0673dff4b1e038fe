"""The Flower ServerApp: what `flwr run` starts."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config import Config, Setting, config_of_run
from common.data.federation import load_federation
from common.errors import UserError
from server.console import RunConsole
from server.federation import Run, check_evaluation_data, use_one_thread
from server.run_folder import RunFolder

RunGrid = Callable[[Grid], None]


def make_server_app(run: Run) -> ServerApp:
    """Build an app that executes a prepared run."""
    app = ServerApp()
    app.main()(partial(_execute, run))
    return app


def _execute(run: Run, grid: Grid, context: Context) -> None:
    with run.console:
        run.execute(grid)


def prepare(config: Config, folder: str | Path) -> Run:
    """Load the data and open the run folder, before any client is asked for anything.

    Raises
    ------
    UserError
        If the data cannot be used, or the folder holds a run already.
    """
    use_one_thread()
    data = load_federation(config)
    check_evaluation_data(data)
    # The run's own record of its settings says what the data are.
    config = replace(config, dataset=replace(config.dataset, task=data.task))
    run = Run(config, data, RunFolder(folder), RunConsole(config.rounds, data.task))
    run.folder.write_config(config)
    return run


def check_federated(config: Config) -> None:
    """Raise `UserError` for a strategy that is no federation, see `server.reference`."""
    if config.strategy.setting is not Setting.federated:
        name = config.strategy.name
        raise UserError(
            f"strategy={name} is a bound that one machine trains: utmp-train strategy={name}"
        )


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run-config strings ``config-name`` and ``overrides`` describe."""
    try:
        config = config_of_run(context.run_config)
        check_federated(config)
        _execute(prepare(config, config.run_dir), grid, context)
    except UserError as error:
        # Flower logs a traceback of whatever ends a ServerApp; the line comes first, and alone.
        print(f"error: {error}", flush=True)
        raise
