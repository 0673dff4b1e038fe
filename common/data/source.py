"""What a source of data is read into, and the settings that decide how.

Notation: N items.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import list_hint
from common.data.dataset import MultimodalDataset, Sequences, cut_steps
from common.errors import UserError, printable
from common.task import Task

#: The six emotions of CMU-MOSEI, in the order of its label files, after the sentiment.
EMOTIONS = ("happiness", "sadness", "anger", "surprise", "disgust", "fear")

#: How the sides of a split are called here, by what sources call them.
SIDES = {
    "train": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

#: Names that a note lists, at most.
MOST_NAMES = 12

#: Groups that a split into train, validation and test needs.
SPLIT_GROUPS = 3


@dataclass(frozen=True)
class Reading:
    """How raw input becomes items, whatever it is read for.

    The one record of it: shards carry it, a run takes it from them or from its settings, and the
    model file holds it, so that what is predicted or evaluated later is read alike. Shapes, tasks
    and names of classes and labels are not part of it: items and models have those themselves.

    Raises `ValueError` where a number is out of range.
    """

    #: At most so many last steps of an item are kept; None for all.
    max_seq_len: int | None = None
    #: Where an item is one vector: how many items of its group come before it in its sequence.
    context: int = 0
    #: Name of the array or column that holds the groups; None for the format's own.
    group: str | None = None
    #: Columns of a table that hold the labels.
    labels: tuple[str, ...] = ()
    #: Whether the labels are the source's six emotions.
    emotions: bool = False
    #: Modality to the identity of the extractor that made its features, where that is known.
    extractors: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_seq_len is not None and self.max_seq_len < 1:
            raise ValueError(f"max_seq_len={self.max_seq_len}: expected a number above 0")
        if self.context < 0:
            raise ValueError(f"context={self.context}: expected a number of at least 0")

    def shorter(self, steps: int | None) -> "Reading":
        """Return this with at most so many last steps; None for as many as here."""
        known = [most for most in (self.max_seq_len, steps) if most is not None]
        return replace(self, max_seq_len=min(known, default=None))

    def check_extractors(self, what: str, found: Mapping[str, str]) -> None:
        """Raise `UserError` for features of another extractor than the model's data.

        `what` they are; `found` is modality to the identity of an extractor, where that is known.
        """
        for name, identity in found.items():
            if (own := self.extractors.get(name, identity)) != identity:
                raise UserError(
                    f"{what}: {name} is from the extractor {identity}, and the model's data from "
                    f"{own}: extract it again with the model's extractor"
                )

    def check_prepared(self, what: str, prepared: "Reading | None", longest: int) -> None:
        """Raise `UserError` for items that were prepared in a way which contradicts this one.

        `what` they are; `prepared` is their reading, None if they do not say; `longest` is the
        number of steps of the longest of them. Items that were cut less are no contradiction.
        """
        if prepared is None:
            return
        self.check_extractors(what, prepared.extractors)
        cut, wanted = (each.max_seq_len or math.inf for each in (prepared, self))
        other = "max_seq_len" if longest >= cut and cut < wanted else ""
        other = "context" if prepared.context != self.context else other
        if other:
            there, here = (getattr(each, other) for each in (prepared, self))
            raise UserError(
                f"{what} was prepared with {other}={there}, and the model's data were read with "
                f"{other}={'null' if here is None else here}: prepare it again with that"
            )


@dataclass(frozen=True)
class ReadSettings(Reading):
    """How a source is read, and what for; with `emotions`, `task` is multilabel."""

    task: Task = Task.regression
    #: The classes, in the order of their numbers; empty for those that the source has.
    classes: tuple[str, ...] = ()
    #: Which to read; empty for all that there are.
    modalities: tuple[str, ...] = ()
    #: Modalities whose steps are different quantities.
    tabular: tuple[str, ...] = ()
    #: Modality to its file, for a table.
    arrays: Mapping[str, str] = field(default_factory=dict)
    #: What stands before a setting's name on the user's command line.
    prefix: str = ""
    #: Whether a source need not have all of `modalities`, but one.
    lenient: bool = False
    #: Whether items are read to predict them. Then labels and sides are not read, and labels are
    #: NaN; no item is dropped for what it lacks; and reading is lenient.
    predicting: bool = False
    #: What of the source was not used, to how many; readers add to it, see `finished`.
    notes: dict[str, int] = field(default_factory=dict, compare=False)

    def note(self, what: str, count: int) -> None:
        """Count what is not used, as "ids of audio that the table does not have"."""
        if count:
            self.notes[what] = self.notes.get(what, 0) + count

    def unused(self, kind: str, names: Iterable[str]) -> None:
        """Name what is not used, each a "column", "array", "key" or "file" of the source."""
        # As a file has them, which is not trusted.
        if listed := [printable(name)[:60] for name in names]:
            more = ", …" if len(listed) > MOST_NAMES else ""
            kinds = kind if len(listed) == 1 else f"{kind}s"
            self.notes[f"{kinds} not used: {', '.join(listed[:MOST_NAMES])}{more}"] = len(listed)

    def take(self, sequences: Mapping[str, Sequences]) -> dict[str, Sequences]:
        """Return items with at most their last steps; note those that had more, or lack any."""
        cut, counts = cut_steps(sequences, self.max_seq_len)
        absent = {name: ~own.present for name, own in sequences.items()}
        lacking = {f"items without {name}": int(own.sum()) for name, own in absent.items()}
        if len(absent) > 1:
            lacking["items without any modality"] = int(np.all([*absent.values()], axis=0).sum())
        for what, count in {**lacking, **counts}.items():
            self.note(what, count)
        return cut

    def offer_group(self, name: str, cells: Sequence[object]) -> None:
        """Name an unused column, or array, whose values repeat across items: it may be a group.

        Items that are not to be split need none.
        """
        if self.predicting or self.lenient:
            return
        different = len(set(cells)) if all(isinstance(cell, str | int) for cell in cells) else 0
        if SPLIT_GROUPS <= different <= len(cells) // 2:
            self.notes[
                f"different values of {printable(name)} repeat across items; "
                f"{self.prefix}group={printable(name)} keeps those that share one on one side"
            ] = different

    @property
    def reading(self) -> Reading:
        """The part that is remembered."""
        return Reading(*(getattr(self, each.name) for each in fields(Reading)))


@dataclass(frozen=True)
class Source:
    """What a reader returns."""

    #: Cleaned; their `sequences` are float32, or float16 where the source is.
    items: MultimodalDataset
    #: (N,) "train", "validation" or "test", as the source says; "" where it does not.
    splits: NDArray[np.str_]
    #: As in `Reading`.
    extractors: Mapping[str, str] = field(default_factory=dict)


def paths_named(setting: str, given: object) -> list[Path]:
    """Return the path or paths that a setting names; raise `UserError` if it names none."""
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    paths = [Path(path) for path in listed if isinstance(path, str) and path]
    if not paths or len(paths) < len(listed):
        raise UserError(f"{setting}={given}: expected a path or a list of paths")
    return paths


def check_there(path: Path) -> None:
    """Raise `UserError` for a path where there is nothing, or an empty file or folder."""
    if not path.exists():
        raise UserError(f"{path} does not exist{list_hint(path)}")
    if path.is_dir():
        empty = not any(path.iterdir())
    elif empty := path.is_file():
        with path.open("rb") as file:
            empty = not file.read(1)  # a file of the system has no size
    if empty:
        raise UserError(f"{path} is empty; expected data")


def check_tabular(items: MultimodalDataset, settings: ReadSettings) -> None:
    """Raise `UserError` where a modality that should be tabular was not read."""
    unknown = sorted(set(settings.tabular) - set(items.sequences))
    if unknown:
        raise UserError(
            f"{settings.prefix}tabular: {unknown[0]!r} is not among {', '.join(items.sequences)}"
        )


def as_text(value: object) -> str:
    """Return a name as text, also where it is bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def check_unique(ids: NDArray[np.str_], path: Path) -> NDArray[np.str_]:
    """Return ids, or raise `UserError` where two items have the same."""
    names, counts = np.unique(ids, return_counts=True)
    if len(names) < len(ids):
        raise UserError(
            f"{path}: two items have the id {str(names[counts > 1][0])!r}; expected one each"
        )
    return ids


def modalities_there(settings: ReadSettings, there: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities to read: those asked for, and leniently those of them there are."""
    if not (settings.predicting or settings.lenient):
        return settings.modalities
    available = set(there)
    return tuple(filter(available.__contains__, settings.modalities)) or settings.modalities


def drop_unlabelled(
    dataset: MultimodalDataset, splits: NDArray[np.str_], settings: ReadSettings
) -> Source:
    """Drop items with a NaN among their labels, and note them; classes become int64."""
    if settings.predicting:
        return Source(dataset, splits)
    unknown = np.isnan(dataset.labels)
    several = unknown.ndim == 2
    unlabelled = unknown.any(axis=1) if several else unknown
    labelled = np.flatnonzero(~unlabelled)
    kept = dataset.select(labelled)
    if settings.task is Task.classification:
        kept = replace(kept, labels=kept.labels.astype(np.int64))
    partly = int((unlabelled & ~unknown.all(axis=1)).sum()) if several else 0
    settings.note("items without a label, dropped", int(unlabelled.sum()) - partly)
    settings.note("items that lack some of the labels, dropped", partly)
    return Source(kept, splits[labelled])


def finished(
    dataset: MultimodalDataset, splits: NDArray[np.str_], settings: ReadSettings
) -> Source:
    """Return what a reader read: labelled, cut to its last steps, with a count of what is lost.

    That is in the items' `cleaning`, the one place for it: what the reader noted, the items that
    lack a label or a modality, and those that were cut.
    """
    source = drop_unlabelled(dataset, splits, settings)
    items, sequences = source.items, settings.take(source.items.sequences)
    kept = replace(items, sequences=sequences, cleaning=dict(settings.notes))
    return Source(kept, source.splits)
