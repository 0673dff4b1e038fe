"""Event files for TensorBoard, in ``tensorboard/`` of the run folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import yaml
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from common.config import Config
from common.metrics import HEADLINE
from server.run.folder import TENSORBOARD, plain_settings
from server.tracking.figures import parameters


class TensorBoardTracker:
    """Tracks a run with one event file, which holds what ``rounds.jsonl`` holds.

    TensorBoard forgets the steps of older files of the folder when it reads a new one, so no round
    is shown twice. Older files stay: a TensorBoard that reads one finds the next from there.
    """

    known = 0

    def __init__(self, config: Config, folder: Path) -> None:
        self._writer = SummaryWriter(folder / TENSORBOARD, purge_step=0)
        self._file = cast(FileWriter, self._writer.file_writer)
        settings = yaml.safe_dump(plain_settings(config), sort_keys=False)
        self._writer.add_text("config", f"```yaml\n{settings}```")
        # The table of runs: the experiment, and the beginning and end of a run.
        assert config.dataset.task is not None
        metric = HEADLINE[config.dataset.task]
        shown = {f"{side}/{metric}/multimodal": 0.0 for side in ("test", "validation")}
        values = {name: _typed(value) for name, value in parameters(config).items()}
        *begin, self._end = hparams(values, shown)  # type: ignore[no-untyped-call]
        for summary in begin:
            self._file.add_summary(summary)

    def log(self, figures: Mapping[str, float], step: int, when: float) -> None:
        """Write figures."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step, when)
        self._writer.flush()

    def finish(self) -> None:
        """Write that the run has ended."""
        self._file.add_summary(self._end)
        self._writer.flush()

    def close(self, status: str) -> None:
        """Close the file."""
        self._writer.close()


def _typed(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
