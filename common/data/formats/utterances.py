"""What all sources of CMU-MOSI and CMU-MOSEI have in common: utterances of videos.

Notation: N items.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import MultimodalDataset
from common.data.source import EMOTIONS, ReadSettings, Source, drop_unlabelled, modalities_there
from common.errors import UserError
from common.task import Task


def modalities_of(path: Path, there: Iterable[str], settings: ReadSettings) -> tuple[str, ...]:
    """Return the modalities to read, of those there are.

    Raises
    ------
    UserError
        If one is not there, none is, or settings ask for something that utterances do not have.
    """
    if settings.context > 0:
        raise UserError(
            f"{settings.prefix}context={settings.context} is for arrays with one vector an item"
        )
    if settings.group is not None:
        raise UserError(
            f"{settings.prefix}group={settings.group}: groups are the videos that ids name"
        )
    if settings.task is Task.multilabel and not settings.emotions:
        raise UserError(
            f"{path} has one label an item; {settings.prefix}task=emotion takes the six emotions, "
            "where it has them"
        )
    names = tuple(there)
    if not names:
        raise UserError(f"{path} has no modality; expected language, audio or vision")
    wanted = modalities_there(settings, names) or names
    for name in wanted:
        if name not in names:
            raise UserError(f"{path} has no modality {name!r}; it has {', '.join(names)}")
    return tuple(dict.fromkeys(wanted))


def labels_of(
    where: str, columns: NDArray[np.float64], settings: ReadSettings
) -> NDArray[np.float64]:
    """Return the sentiment (N,), or the emotions (N, 6), of (N, 1) or (N, 7) columns."""
    if not settings.emotions:
        return columns[:, 0]
    if columns.shape[1] == 1:
        raise UserError(
            f"{where} has no emotions: labels have one column, expected 7 for task=emotion"
        )
    return columns[:, 1:]


def cleaned(
    path: Path,
    items: MultimodalDataset,
    splits: NDArray[Any],
    settings: ReadSettings,
    counts: dict[str, int],
) -> Source:
    """Drop items that lack language or a label, and count what is missing.

    When predicting, none is dropped. `counts` say what was cleaned before.

    Raises
    ------
    UserError
        If no item is left.
    """
    kept = items
    if "language" in items.sequences and not settings.predicting:
        index = np.flatnonzero(items.sequences["language"].present)
        kept, splits = items.select(index), splits[index]
    counts["items whose language is all zero, dropped"] = len(items) - len(kept)
    for name, sequences in kept.sequences.items():
        counts[f"items without {name}"] = int((~sequences.present).sum())
    cleaning = {what: count for what, count in counts.items() if count}
    names = EMOTIONS if settings.emotions else ()
    kept = replace(kept, cleaning=cleaning, label_names=names)
    source = drop_unlabelled(kept, splits, settings)
    if len(source.items) == 0:
        raise UserError(f"{path}: no item has a label and language that is not all zero")
    return source
