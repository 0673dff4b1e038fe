"""What `utmp-predict` shows: the model, the input, a progress bar, what was predicted from what."""

from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from common.data.dataset import describe_shape
from common.data.item_stream import ItemStream
from server.prediction.predictor import Predictor
from server.terminal import Terminal


class PredictConsole(Terminal):
    """The terminal of predictions; use as a context manager while they are made.

    Parameters
    ----------
    console
        Where to print; by default the terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("predicting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("items"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._bar = self._progress.add_task("predicting", total=None)

    def __enter__(self) -> "PredictConsole":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def model(self, predictor: Predictor, path: str) -> None:
        """Print what predicts."""
        takes = ", ".join(
            f"{name} ({describe_shape(shape)})" for name, shape in predictor.features.items()
        )
        self.tell(f"model {path}: {predictor.task}; {takes}; fusion {predictor.fusion.rule}")

    def source(self, stream: ItemStream) -> None:
        """Print what is predicted."""
        self.tell(f"input: {stream.format}, {stream.why}; {stream.count} items")
        for what, count in stream.cleaning.items():
            self.tell(f"cleaned: {count} {what}")
        self._progress.update(self._bar, total=stream.count)

    def advance(self, items: int) -> None:
        """Show that so many more items are done."""
        self._progress.advance(self._bar, items)

    def predicted(
        self, from_modalities: Mapping[str, int], not_finite: Mapping[str, int], out: str
    ) -> None:
        """Print what was predicted from what.

        Parameters
        ----------
        from_modalities
            Modalities joined by ``+``, "" for none, to the number of items.
        not_finite
            Modality to the number of its values that are NaN or infinite.
        out
            The file.
        """
        for names, count in sorted(from_modalities.items(), key=_most_first):
            if names:
                self.tell(f"{count} items from {names}")
        if from_modalities.get(""):
            self.warn(f"{from_modalities['']} items have no modality: nothing is predicted of them")
        for name, count in not_finite.items():
            if count:
                self.warn(f"{count} values of {name} are not finite, and count as the mean")
        self.tell(f"predictions: {out}")


def _most_first(counted: tuple[str, int]) -> tuple[int, str]:
    return -counted[1], counted[0]
