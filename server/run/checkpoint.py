"""The state of a run after a round, on disk: what `resume` goes on from.

A checkpoint is one sealed file, written aside, synced and renamed: it is there as a whole or not at
all, and damage is told. What a run draws at random hangs on its seed and the round, so there is no
state of generators to keep.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.atomic import atomic_file
from common.errors import UserError
from common.seal import SUFFIX, SealError, read_sealed, write_sealed
from server.aggregation.server_optimizer import OptimizerState
from server.roster.labels import PooledLabels
from server.strategy import StrategyState

FORMAT = "ha-fedformer-checkpoint-1"
FOLDER = "checkpoints"
_NAME = re.compile(r"round-(\d+)" + re.escape(SUFFIX))

Arrays = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round.

    Attributes
    ----------
    round
        From 1.
    config
        The run's settings, as in ``config.yaml``.
    items
        "train", "validation" and "test" to how many there are.
    model
        All tensors of the global model.
    strategy
        What the strategy carries on.
    labels
        What the clients' labels were together when the run began.
    seconds
        How long the run has taken.
    """

    round: int
    config: Mapping[str, Any]
    items: Mapping[str, int]
    model: Arrays
    strategy: StrategyState
    labels: PooledLabels
    seconds: float


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes
    ----------
    folder
        Where they are; made with the first.
    keep
        How many of the last are kept.
    """

    folder: Path
    keep: int = 2

    def save(self, checkpoint: Checkpoint, best: int | None = None) -> None:
        """Write a checkpoint, then remove those that are no longer kept.

        Parameters
        ----------
        checkpoint
            What to write.
        best
            The round whose checkpoint is kept beside the last; None for no such.

        Raises
        ------
        OSError
            If it cannot be written; the others are as they were then.
        """
        self.folder.mkdir(exist_ok=True)
        with atomic_file(self.path(checkpoint.round)) as aside:
            write_sealed(aside, _arrays(checkpoint), _header(checkpoint))
        rounds = self.rounds()
        # Later ones were damaged, or the run would have gone on from them.
        past = [number for number in rounds if number <= checkpoint.round]
        kept = {*past[-self.keep :], best}
        for number in rounds:
            if number not in kept:
                self.path(number).unlink()
        for aside in self.folder.glob(".*"):
            # A process that was killed while it wrote.
            aside.unlink()

    def path(self, number: int) -> Path:
        """Return where the checkpoint of a round is."""
        return self.folder / f"round-{number:06d}{SUFFIX}"

    def rounds(self) -> list[int]:
        """Return the rounds of which there are checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def latest(self, tell: Callable[[str], None]) -> Checkpoint | None:
        """Read the last checkpoint that is whole.

        Parameters
        ----------
        tell
            Takes one line for each that is damaged.

        Returns
        -------
        Checkpoint or None
            None if the run has none yet.

        Raises
        ------
        UserError
            If all are damaged, or of another version.
        """
        rounds = self.rounds()
        for number in reversed(rounds):
            try:
                return read_checkpoint(self.path(number))
            except UserError as error:
                tell(f"{error}; trying the one before")
        if rounds:
            raise UserError(f"no checkpoint in {self.folder} can be read; start the run anew")
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    UserError
        If it is damaged or none.
    """
    try:
        header, tensors, _ = read_sealed(path)
    except SealError as error:
        raise UserError(f"checkpoint {path} {error}") from error
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    if header.get("format") != FORMAT:
        raise UserError(f"checkpoint {path} has format {header.get('format')}, expected {FORMAT}")
    # Copies: what is mapped into memory would keep the file open, and cannot be trained on.
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor.clone()
    labels = parts["labels"]
    return Checkpoint(
        header["round"],
        header["config"],
        header["items"],
        parts["model"],
        StrategyState(
            OptimizerState(parts.get("first", {}), parts.get("second", {})),
            parts.get("evidence", {}),
            {int(node): count for node, count in header["faults"].items()},
            header.get("medians", {}),
        ),
        PooledLabels(labels["prior"], labels["shares"], header["skew"]),
        header["seconds"],
    )


def _arrays(checkpoint: Checkpoint) -> dict[str, Any]:
    parts: Iterable[tuple[str, Arrays]] = (
        ("model", checkpoint.model),
        ("first", checkpoint.strategy.optimizer.first),
        ("second", checkpoint.strategy.optimizer.second),
        ("evidence", checkpoint.strategy.calibration_sums),
        ("labels", {"prior": checkpoint.labels.prior, "shares": checkpoint.labels.shares}),
    )
    return {
        f"{part}/{name}": each.numpy() for part, arrays in parts for name, each in arrays.items()
    }


def _header(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "round": checkpoint.round,
        "config": checkpoint.config,
        "items": checkpoint.items,
        "faults": {str(node): count for node, count in checkpoint.strategy.faults.items()},
        "medians": dict(checkpoint.strategy.medians),
        "skew": checkpoint.labels.skew,
        "seconds": checkpoint.seconds,
    }
