"""The Flower ServerApp: what `flwr run` starts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config import Config, ConsoleStyle, config_of_run
from common.data.federation import FederatedDataset, load_federation
from common.errors import UserError
from common.task import Task
from common.training import use_one_thread
from server.records import RoundRecord
from server.run.checkpoint import Checkpoint, Checkpoints
from server.run.console import JsonConsole, RunConsole
from server.run.federation import federate
from server.run.folder import CHECKPOINTS, SUMMARY, RunFolder, resumed_config
from server.run.interruption import end_with_parent
from server.run.run import Run
from server.run.selection import out_of_patience
from server.tracking.tracker import check_tracking, make_tracking


def prepare(config: Config, folder: str | Path, given: Sequence[str] | None = None) -> Run:
    """Load the data and open the run folder, before any client is asked for anything.

    A new run goes into `folder`; with ``resume`` the overrides `given` are asked of the former one,
    see `server.run.folder.resumed_config`. Raises `UserError` if the data cannot be used, the
    folder holds a run already, or there is nothing to resume.
    """
    use_one_thread()
    if config.resume is not None:
        config = resumed_config(RunFolder.config_of(config.resume), config, given)
        check_federated(config)
    check_tracking(config.tracking)
    data = load_federation(config)
    check_evaluation_data(data)
    # The run's own record of its settings says what the data are.
    config = replace(config, dataset=replace(config.dataset, task=data.task))
    kind = JsonConsole if config.console is ConsoleStyle.json else RunConsole
    console = kind(config.rounds, data.task)
    opened, checkpoint, records = _open(config, data.task, folder, console)
    tracking = make_tracking(config, opened.path, console.warn)
    try:
        opened.write_config(config)
    except UserError:
        if config.resume is None:
            opened.release()
        raise
    return Run(config, data, opened, console, tracking, checkpoint, records)


def _open(
    config: Config, task: Task, folder: str | Path, console: RunConsole
) -> tuple[RunFolder, Checkpoint | None, list[RoundRecord]]:
    """Open a new folder, or that of the run to resume with what it has."""
    if config.resume is None:
        return RunFolder(folder), None, []
    opened = RunFolder.reopen(config.resume)
    checkpoint = Checkpoints(opened.path / CHECKPOINTS).latest(console.warn)
    done = checkpoint.round if checkpoint else 0
    records = opened.read_rounds(done, task)
    finished = (opened.path / SUMMARY).is_file()
    if config.rounds < done or (config.rounds == done and finished):
        raise UserError(
            f"resume={config.resume}: that run has its {done} rounds; for more, give rounds=…"
        )
    if finished and out_of_patience(records, task, config.patience):
        raise UserError(
            f"resume={config.resume}: patience={config.patience} ends that run after its {done} "
            "rounds; to go on, give a larger one, or patience=null"
        )
    opened.keep_rounds(done)
    return opened, checkpoint, records


def check_federated(config: Config) -> None:
    """Raise `UserError` for a baseline: it is trained without a federation."""
    if config.strategy.setting != "federated":
        name = config.strategy.name
        raise UserError(
            f"strategy={name} is a baseline that one machine trains: utmp-train strategy={name}"
        )


def check_evaluation_data(data: FederatedDataset) -> None:
    """Raise `UserError` unless there is something to evaluate on."""
    for title, items in (("validation", data.validation), ("test", data.test)):
        if len(items) == 0:
            raise UserError(f"there are no {title} items; raise dataset.{title}_fraction above 0")
        for name, sequences in items.sequences.items():
            if not sequences.present.any():
                raise UserError(f"no {title} item has {name}")


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run-config strings ``config-name`` and ``overrides`` describe."""
    # Imported here: Flower's client of a SuperLink takes a second that no simulation needs.
    from flwr.superlink.grid.http_grid import HttpGrid

    from server.roster.whole_replies import WholeReplyGrid

    if isinstance(grid, HttpGrid):
        grid = WholeReplyGrid(grid)
        end_with_parent()
    try:
        config = config_of_run(context.run_config)
        check_federated(config)
        federate(prepare(config, config.run_dir), grid)
    except UserError as error:
        # Flower logs a traceback of whatever ends a ServerApp; the line comes first, and alone.
        print(f"error: {error}", flush=True)
        raise
