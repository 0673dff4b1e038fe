"""The state of a run after a round, on disk: what ``resume`` starts from, and a model.

A checkpoint is one sealed file that appears complete or not at all; damage is detected. It holds
all that `server.model_file.load_model` needs. Random draws depend only on the seed and the round,
so there is no generator state to keep.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.atomic import atomic_file
from common.clients import ClientKey
from common.errors import UserError, reason
from common.model.fusion import Fusion
from common.model.ha_fedformer import ModelSpec
from common.seal import SUFFIX, SealError, read_sealed, write_sealed
from server.acceptance.examination import Evidence
from server.aggregation.server_optimizer import OptimizerState
from server.model_file import CHECKPOINT, WEIGHTS, from_header, to_header
from server.roster.labels import PooledLabels
from server.strategy import StrategyState

_NAME = re.compile(r"round-(\d+)" + re.escape(SUFFIX))


class MisfitError(UserError):
    """A checkpoint of other data, from which no run can be resumed."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after a round."""

    round: int  # from 1
    config: Mapping[str, Any]  # as in ``config.yaml``
    items: Mapping[str, int]  # "train", "validation" and "test" to how many there are
    model: Mapping[str, Tensor]  # all tensors of the global model
    spec: ModelSpec  # of that model
    fusion: Fusion  # fitted after the round
    strategy: StrategyState
    labels: PooledLabels  # of all clients when the run began
    seconds: float  # how long the run has taken

    def check_fits(
        self, items: Mapping[str, int], model: Mapping[str, Tensor], where: Path
    ) -> None:
        """Raise `MisfitError` unless it is of the same evaluation items and arrays."""
        for side in ("validation", "test"):
            if self.items[side] != items[side]:
                raise MisfitError(
                    f"{where} does not fit: that run had {self.items[side]} {side} items, and "
                    f"there are {items[side]} now; start a new run"
                )
        kept = {name: tuple(array.shape) for name, array in self.model.items()}
        needed = {name: tuple(array.shape) for name, array in model.items()}
        for name in sorted(kept.keys() | needed.keys()):
            if kept.get(name) != needed.get(name):
                raise MisfitError(
                    f"{where} does not fit: its {name} has shape {kept.get(name)}, and that of the "
                    f"model for these data {needed.get(name)}; start a new run"
                )
        if not all(array.isfinite().all() for array in self.model.values()):
            raise MisfitError(f"{where} holds a value that is not finite; start a new run")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: the last `keep`, in a folder that is made with the first."""

    folder: Path
    keep: int = 2

    def save(self, checkpoint: Checkpoint, best: int | None = None) -> None:
        """Write a checkpoint, then remove all but the last ones and that of round `best`.

        Raises `OSError` if it cannot be written; the others stay as they were.
        """
        self.folder.mkdir(exist_ok=True)
        with atomic_file(self.path(checkpoint.round)) as aside:
            _write(aside, checkpoint)
        rounds = self.rounds()
        # Later ones were damaged, or the run would have resumed from them.
        past = [number for number in rounds if number <= checkpoint.round]
        for number in {*rounds} - {*past[-self.keep :], best}:
            self.path(number).unlink()
        for aside in self.folder.glob(".*"):
            aside.unlink()  # left by a process that was killed while writing

    def path(self, number: int) -> Path:
        """Return where the checkpoint of a round is."""
        return self.folder / f"round-{number:06d}{SUFFIX}"

    def rounds(self) -> list[int]:
        """Return the rounds that have a checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def latest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """Read the last intact checkpoint, with a warning for each damaged one; None if none yet.

        Raises `UserError` if all are damaged, or of another version.
        """
        rounds = self.rounds()
        for number in reversed(rounds):
            try:
                return read_checkpoint(self.path(number))
            except UserError as error:
                warn(f"{error}; trying the one before")
        if rounds:
            raise UserError(f"no checkpoint in {self.folder} can be read; start a new run")
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; raise `UserError` if it is damaged or not a checkpoint."""
    try:
        header, tensors, _ = read_sealed(path)
    except SealError as error:
        raise UserError(f"checkpoint {path} {error}") from error
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {reason(error)}") from error
    if (found := header.get("format")) != CHECKPOINT:
        raise UserError(f"checkpoint {path} has format {found}, expected {CHECKPOINT}")
    # Copies: memory-mapped tensors would keep the file open, and cannot be trained on.
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor.clone()
    return Checkpoint(
        header["round"],
        header["config"],
        header["items"],
        parts[WEIGHTS],
        *from_header(header),
        StrategyState(
            OptimizerState(parts.get("first", {}), parts.get("second", {})),
            parts.get("evidence", {}),
            {int(node): count for node, count in header["faults"].items()},
            header.get("medians", {}),
            {ClientKey(*key): Evidence(*sums) for key, sums in header.get("harm", [])},
        ),
        PooledLabels(**parts["labels"], skew=header["skew"]),
        header["seconds"],
    )


def _write(path: Path, checkpoint: Checkpoint) -> None:
    strategy, labels = checkpoint.strategy, checkpoint.labels
    parts: dict[str, Mapping[str, Tensor]] = {
        WEIGHTS: checkpoint.model,
        "first": strategy.optimizer.first,
        "second": strategy.optimizer.second,
        "evidence": strategy.calibration_sums,
        "labels": {"prior": labels.prior},
    }
    header = {
        "format": CHECKPOINT,
        "round": checkpoint.round,
        "config": checkpoint.config,
        "items": checkpoint.items,
        **to_header(checkpoint.spec, checkpoint.fusion),
        "faults": {str(node): count for node, count in strategy.faults.items()},
        "medians": dict(strategy.medians),
        "harm": [[key, astuple(sums)] for key, sums in strategy.evidence.items()],
        "skew": labels.skew,
        "seconds": checkpoint.seconds,
    }
    arrays = {
        f"{part}/{name}": array.numpy()
        for part, named in parts.items()
        for name, array in named.items()
    }
    write_sealed(path, arrays, header)
