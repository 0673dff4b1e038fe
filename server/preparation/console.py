"""What `utmp-prepare` shows: a progress bar, what a source holds, what each client got."""

import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.filesize import decimal
from rich.progress import TaskID
from rich.table import Table

from common.config import in_node_config, setting
from common.data.federation import count_outputs
from common.data.labels import label_warnings
from common.data.manifest import Manifest
from common.data.partition import shared_groups
from common.data.source import Reading
from common.seal import SUFFIX
from common.task import Task
from server.preparation.preparation import ReadSource, Watch
from server.preparation.statistics import LabelBins, sequence_statistics
from server.terminal import Terminal, counted, rounded

#: Cells of a histogram's longest bar.
WIDTH = 30

#: The picture in a folder of shards.
PLOT = "partition.png"

#: Classes or labels that have a column of their own.
_MOST_COLUMNS = 12

#: Letters of a label in the legend.
_LONGEST = 24


@contextmanager
def progress(terminal: Terminal) -> Iterator[Watch]:
    """Show a bar for each stage of a preparation."""
    bars: dict[str, TaskID] = {}
    shown = terminal.progress()

    def watch(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            # A stage that cannot say how far it is pulses.
            bars[stage] = shown.add_task(stage, total=None if total == 1 else total)
        shown.update(bars[stage], completed=done, total=None if done < total == 1 else total)

    with shown:
        yield watch


def show_source(terminal: Terminal, read: ReadSource) -> None:
    """Print what a source holds."""
    items, splits, task = read.source.items, read.source.splits, read.task
    _show_origin(terminal, read.about, items.cleaning, read.reading)
    sides = []
    for side in ("train", "validation", "test", ""):
        mask = splits == side
        if mask.any():
            groups = len(np.unique(items.groups[mask]))
            sides.append((side or "no side given", int(mask.sum()), groups))
    terminal.console.print(_table("Items", ["side", "items", "groups"], sides))
    modalities = []
    for name, sequences in items.sequences.items():
        facts = sequence_statistics(sequences)
        dtype = facts["dtype"] + (" tabular" if facts["tabular"] else "")
        lengths = "{min}-{median:.0f}-{max}".format(**facts["lengths"])
        counts = (facts[key] for key in ("nan", "infinite", "constant"))
        kept = (facts["items"], facts["missing"])
        modalities.append((name, facts["width"], dtype, *kept, lengths, *counts))
    columns = ["modality", "width", "type", "items", "missing", "steps", "NaN", "inf", "const."]
    terminal.console.print(_table("Modalities", columns, modalities))
    terminal.tell("steps: least, median, most. const.: features that never change", "dim")
    outputs = count_outputs(task, items.label_names, items.labels)
    bins = LabelBins.of(items.labels, task, items.label_names, outputs)
    terminal.console.print(_histogram(bins.names, bins.count(items.labels), f"Labels, {task}"))
    unlikely = label_warnings(task, items.labels, items.label_names)
    for line in (*unlikely, *shared_groups(items, splits)):
        terminal.warn(line)


def show_prepared(terminal: Terminal, manifest: Manifest, out: str) -> None:
    """Print what was prepared, and the command that uses it."""
    _show_origin(terminal, manifest.source, manifest.cleaning, manifest.reading)
    terminal.console.print(_shards(manifest))
    for line in manifest.warnings:
        terminal.warn(line)
    size = sum(shard["bytes"] for shard in manifest.shards.values())
    sides = ", ".join(
        f"{name} {side['items']}" for name, side in manifest.sides.items() if side["items"]
    )
    clients = manifest.clients()
    count = counted(len(clients), "client")
    terminal.tell(f"{out}: {count}; items: {sides}; {decimal(size)}")
    if clients and f"test{SUFFIX}" in manifest.shards:
        terminal.tell(f"next: utmp-train {setting('dataset.path', out)}")
    elif clients:
        file = in_node_config(f"{out}/{clients[0]}{SUFFIX}")
        node = shlex.quote(f'modality="{clients[0].modality}" data={file}')
        terminal.tell(f"next, at the site: utmp-client … --node-config {node}")


def _show_origin(
    terminal: Terminal, source: Mapping[str, Any], cleaning: Mapping[str, int], reading: Reading
) -> None:
    for file in source["files"]:
        known = f"; published as {file['known']}" if "known" in file else ""
        size = decimal(file["bytes"])
        terminal.tell(f"{file['name']}: {size}, SHA-256 {file['sha256']}{known}")
    why = f": {source['why']}" if source["why"] else ""
    terminal.tell(f"format {source['format']}{why}")
    for name, identity in reading.extractors.items():
        terminal.tell(f"{name} is from the extractor {identity}")
    terminal.data(cleaning)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a table whose first column, and any "type", is text, and the others numbers."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        text = number == 0 or column == "type"
        table.add_column(column, justify="left" if text else "right")
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _histogram(names: Sequence[str], counts: Sequence[int], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    most = max([*counts, 1])
    for name, count in zip(names, counts, strict=True):
        table.add_row(name, str(count), "█" * round(WIDTH * count / most))
    return table


def _shards(manifest: Manifest) -> Table:
    regression, columns = manifest.task is Task.regression, manifest.settings["label_bins"]
    if regression:
        columns = ["mean", "sd"]
    elif wide := len(columns) > _MOST_COLUMNS:
        columns = ["different labels"]
    rows = []
    for file, shard in manifest.shards.items():
        counts = shard["labels"]["histogram"]
        if regression:
            mean, deviation = (shard["labels"][key] for key in columns)
            cells = [rounded(number, deviation) for number in (mean, deviation)]
        else:
            cells = [sum(count > 0 for count in counts)] if wide else counts
        rows.append((file.removesuffix(SUFFIX), shard["items"], shard["groups"], *cells))
    return _table("Who got what", ["shard", "items", "groups", *columns], rows)


def partition_plot(manifest: Manifest) -> bytes:
    """Draw each shard's items as a bar, divided by label: a PNG, equal for equal manifests."""
    # Imported here: half a second that no other command needs.
    import matplotlib
    import matplotlib.figure

    names = list(manifest.shards)
    bins = manifest.settings["label_bins"]
    counts = np.array([manifest.shards[name]["labels"]["histogram"] for name in names])
    height = max(2.2, 0.28 * len(names) + 1.4)
    figure = matplotlib.figure.Figure(figsize=(9, min(height, 60)), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, len(bins)))
    left = np.zeros(len(names))
    for label, width, colour in zip(bins, counts.T, colours, strict=True):
        short = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
        # As it is: no formula, and not hidden, as a name with an underscore in front would be.
        plain = short.replace("$", r"\$").replace("_", " ", 1 if short.startswith("_") else 0)
        axes.barh(range(len(names)), width, left=left, color=colour, label=plain)
        left += width
    axes.set_yticks(range(len(names)), [name.removesuffix(SUFFIX) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.set(xlabel="items" if manifest.task != "multilabel" else "labels", title="Who got what")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", title="label", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
