"""What `utmp-prepare` shows: a progress bar, what a source holds, what each client got."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.progress import TaskID
from rich.table import Table

from common.data.manifest import Manifest
from common.seal import SUFFIX
from common.task import Task
from server.preparation.reading import ReadSource
from server.preparation.split import shared_groups
from server.preparation.statistics import (
    bin_edges,
    label_bins,
    label_histogram,
    sequence_statistics,
)
from server.terminal import Terminal

#: Cells of a histogram's longest bar.
WIDTH = 30


class PrepareConsole(Terminal):
    """The terminal of a preparation; use as a context manager while it lasts.

    Parameters
    ----------
    console
        Where to print; by default the terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._progress = self.progress()
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> "PrepareConsole":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def watch(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        if stage not in self._bars:
            # A stage that cannot say how far it is pulses.
            self._bars[stage] = self._progress.add_task(stage, total=None if total == 1 else total)
        self._progress.update(
            self._bars[stage], completed=done, total=None if done < total == 1 else total
        )

    def describe(self, found: ReadSource) -> None:
        """Print what a source holds."""
        items, splits = found.source.items, found.source.splits
        self._source(found.about)
        self._cleaning({**items.cleaning})
        self._sides(found)
        table = Table(title="Modalities", title_justify="left")
        columns = ("modality", "width", "type", "items", "missing", "steps", "NaN", "inf", "const.")
        for column in columns:
            table.add_column(column, justify="left" if column in ("modality", "type") else "right")
        for name, sequences in items.sequences.items():
            facts = sequence_statistics(sequences)
            lengths = facts["lengths"]
            table.add_row(
                name,
                str(facts["width"]),
                facts["dtype"] + (" tabular" if facts["tabular"] else ""),
                str(facts["items"]),
                str(facts["missing"]),
                f"{lengths['min']}-{lengths['median']:.0f}-{lengths['max']}",
                str(facts["nan"]),
                str(facts["infinite"]),
                str(facts["constant"]),
            )
        self.console.print(table)
        self.tell("steps: least, median, most. const.: features that never change", "dim")
        self._labels(found)
        for line in shared_groups(items, splits):
            self.warn(line)

    def prepared(self, manifest: Manifest, out: str) -> None:
        """Print what was prepared."""
        self._source(manifest.source)
        self._cleaning(manifest.cleaning)
        self.console.print(_clients(manifest))
        for line in manifest.warnings:
            self.warn(line)
        size = sum(shard["bytes"] for shard in manifest.shards.values())
        sides = ", ".join(
            f"{name} {side['items']}" for name, side in manifest.sides.items() if side["items"]
        )
        clients = manifest.clients()
        count = f"{len(clients)} client{'' if len(clients) == 1 else 's'}"
        self.tell(f"{out}: {count}; items: {sides}; {decimal(size)}")
        if clients and f"test{SUFFIX}" in manifest.shards:
            self.tell(f"next: utmp-train dataset=shards dataset.path={out}")
        elif clients:
            node = f'modality="{clients[0].modality}" data="{out}/{clients[0]}{SUFFIX}"'
            self.tell(f"next, at the site: utmp-client … --node-config '{node}'")

    def _source(self, about: Mapping[str, Any]) -> None:
        for file in about["files"]:
            known = f"; published as {file['known']}" if "known" in file else ""
            self.tell(f"{file['name']}: {decimal(file['bytes'])}, SHA-256 {file['sha256']}{known}")
        self.tell(f"format {about['format']}" + (f": {about['why']}" if about["why"] else ""))

    def _cleaning(self, cleaning: Mapping[str, int]) -> None:
        for what, count in cleaning.items():
            self.tell(f"cleaned: {count} {what}")

    def _sides(self, found: ReadSource) -> None:
        items, splits = found.source.items, found.source.splits
        table = Table(title="Items", title_justify="left")
        for column in ("side", "items", "groups"):
            table.add_column(column, justify="left" if column == "side" else "right")
        for side in ("train", "validation", "test", ""):
            mask = splits == side
            if mask.any():
                groups = len(np.unique(items.groups[mask]))
                table.add_row(side or "no side given", str(int(mask.sum())), str(groups))
        self.console.print(table)

    def _labels(self, found: ReadSource) -> None:
        items, task = found.source.items, found.task
        outputs = (
            items.labels.shape[1]
            if task is Task.multilabel
            else int(items.labels.max(initial=0)) + 1
        )
        edges = bin_edges(items.labels) if task is Task.regression else None
        names = label_bins(items.labels, task, items.label_names, outputs)
        counts = label_histogram(items.labels, task, outputs, edges)
        self.console.print(_histogram(names, counts, f"Labels, {task}"))


def _histogram(names: Sequence[str], counts: Sequence[int], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    most = max([*counts, 1])
    for name, count in zip(names, counts, strict=True):
        table.add_row(name, str(count), "█" * round(WIDTH * count / most))
    return table


def _clients(manifest: Manifest) -> Table:
    bins = manifest.settings["label_bins"]
    table = Table(title="Who got what", title_justify="left")
    table.add_column("shard")
    table.add_column("items", justify="right")
    table.add_column("groups", justify="right")
    regression = manifest.task is Task.regression
    for name in ("mean", "sd") if regression else bins:
        table.add_column(name, justify="right")
    for file, shard in manifest.shards.items():
        labels = shard["labels"]
        cells = (
            [f"{labels['mean']:.2f}", f"{labels['sd']:.2f}"]
            if regression
            else map(str, labels["histogram"])
        )
        table.add_row(file.removesuffix(SUFFIX), str(shard["items"]), str(shard["groups"]), *cells)
    return table
