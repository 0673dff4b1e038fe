"""Runs that break off, as by a kill, and are resumed."""

from functools import partial
from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict
from tiny_runs import tiny

from client.app import given_config, make_client_app
from server.app import prepare
from server.records import RoundRecord
from server.run.checkpoint import Checkpoints
from server.run.federation import federate
from server.run.folder import CHECKPOINTS, LAST, MODEL, ROUNDS, SUMMARY
from server.run.run import Run
from server.runtimes.local import LocalGrid

ONE = ("clients.default=1",)  #: the smallest: one client of each modality

#: Each carries other state from round to round: moments, trust, evidence, and the best round, which
#: is the first.
RUNS = {
    "adam": ("strategy=fedadam", "fusion=product_of_experts"),
    "hierarchical": ("strategy=hierarchical", "strategy.weights=agreement", "fusion=reliability"),
    "sampled": (
        *("clients.default=2", "strategy=paper"),
        *("strategy.fraction=0.5", "strategy.decoder.noise=0.01"),
    ),
    "overshooting": ("strategy=fedadam", "fusion=product_of_experts", "client.lr=0.3", "seed=1"),
}


class BreakError(BaseException):
    """Ends a run as an interrupt does: nothing catches it to go on."""


def execute(
    run: Run,
    before: int | None = None,  # the round that breaks off, after its first client has answered
    after: int | None = None,  # the round that is on record at the break, without a checkpoint
    spoilt: int | None = None,  # the node whose updates are empty
    since: int = 1,  # the round from which they are
) -> None:
    """Execute a prepared run; it gives its folder up at the end, as a process that ends does."""
    app = make_client_app(partial(given_config, run.config))
    answered = []

    def breaking(message: Message, context: Context) -> Message:
        if message.metadata.group_id == str(before):
            if answered:
                raise BreakError
            answered.append(context.node_id)
        trains = message.metadata.message_type == MessageType.TRAIN
        if trains and context.node_id == spoilt and int(message.metadata.group_id) >= since:
            return Message(RecordDict(), reply_to=message)
        return app(message, context)

    show = run.console.round

    def shown(record: RoundRecord) -> None:
        show(record)
        if record.round == after:
            raise BreakError

    run.console.round = shown
    try:
        federate(run, LocalGrid(breaking, len(run.data.clients)))
    except BreakError:
        assert before is not None or after is not None
    else:
        assert before is None and after is None, "it was to break off"
    finally:
        run.folder.close()


def begin(folder: Path, *overrides: str, **breaks: int) -> None:
    """Run anew, up to a break if one is given."""
    execute(prepare(tiny(*ONE, *overrides), folder), **breaks)


def go_on(folder: Path, *overrides: str, **breaks: int) -> None:
    """Resume a run; only these overrides are given."""
    given = [f"resume={folder}", *overrides]
    execute(prepare(tiny(*given), folder.parent / "elsewhere", given), **breaks)


def cut(folder: Path, rounds: int, checkpoints: int | None = None) -> Path:
    """Leave what a finished run had after some rounds, with the checkpoints of some."""
    lines = (folder / ROUNDS).read_bytes().splitlines(keepends=True)
    (folder / ROUNDS).write_bytes(b"".join(lines[:rounds]))
    for name in (SUMMARY, MODEL, LAST):
        (folder / name).unlink()
    kept = Checkpoints(folder / CHECKPOINTS)
    for number in kept.rounds():
        if number > (rounds if checkpoints is None else checkpoints):
            kept.path(number).unlink()
    return folder


def damage(path: Path) -> None:
    """Flip a bit in the midst of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
