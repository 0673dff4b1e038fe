"""MMSA: ``aligned_50.pkl`` and ``unaligned_50.pkl``, padded on the right, ids ``video$_$clip``.

Audio and vision come with lengths where they are not aligned; the length of BERT features is that
of the attention mask in ``text_bert`` (items, 3, steps), beside token and segment ids.
Source: https://github.com/thuiar/MMSA.
"""

from pathlib import Path

import numpy as np

from common.data.dataset import IntArray
from common.data.formats.pickled import Pickled, keys_of, splits_of
from common.data.source import ReadSettings, Source
from common.errors import UserError
from common.task import Task


def recognise(content: object) -> str | None:
    """Say why the contents of a pickle are of this format, or None."""
    keys = keys_of(content)
    own = keys & {"regression_labels", "classification_labels"}
    if "labels" not in keys:
        own |= keys & {"raw_text", "text_bert"}  # what has no labels at all is told by these
    if not (own and "id" in keys):
        return None
    return f"a pickle of splits {', '.join(splits_of(content))} with {' and '.join(sorted(own))}"


def read(content: object, path: Path, settings: ReadSettings) -> Source:
    """Read the contents of a pickle; arrays are taken out of `content`.

    Raises
    ------
    UserError
        If they are not what the format says.
    """
    keys = keys_of(content)
    if "text" not in keys and "text_bert" in keys and "language" in settings.modalities:
        raise UserError(f"{path}: text_bert holds numbers of tokens; expected features in text")
    whole = settings.task is Task.classification
    labels = "classification_labels" if whole else "regression_labels"
    return Pickled(path, content, settings, labels, _lengths).read()


def _lengths(file: Pickled, split: str, key: str, shape: tuple[int, int]) -> IntArray | None:
    """Return the lengths of a modality's items, where the file says them."""
    count, steps = shape
    if f"{key}_lengths" in file.splits[split]:
        found = file.numbers(split, f"{key}_lengths", count)
        whole = (found >= 0) & (found <= steps) & (np.trunc(found) == found)
        if found.ndim != 1 or not whole.all():
            raise file.fail(split, f"'{key}_lengths' are not whole numbers from 0 to {steps}")
        return found.astype(np.int64)
    if key == "text" and "text_bert" in file.splits[split]:
        mask = file.numbers(split, "text_bert", count)
        if mask.shape[1:] == (3, steps):
            lengths: IntArray = (mask[:, 1] > 0).sum(axis=1)
            return lengths
    return None
