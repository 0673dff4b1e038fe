"""MMSA: ``aligned_50.pkl`` and ``unaligned_50.pkl``, padded on the right, ids ``video$_$clip``.

Audio and vision come with lengths where they are not aligned; the length of BERT features is that
of the attention mask in ``text_bert`` (items, 3, steps), beside token and segment ids.
Source: https://github.com/thuiar/MMSA.
"""

import numpy as np

from common.data.dataset import IntArray
from common.data.formats.pickled import Pickled, keys_of, splits_of
from common.data.formats.registry import FORMATS, Format, Given
from common.data.source import ReadSettings, Source
from common.errors import UserError
from common.task import Task

#: SHA-256 of a published file to its name; from the README.
PUBLISHED = {
    "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": "MOSI/unaligned_50.pkl",
    "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": "MOSI/aligned_50.pkl",
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": "MOSEI/unaligned_50.pkl",
    "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": "MOSEI/aligned_50.pkl",
    "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": "SIMS/unaligned_39.pkl",
}


def recognise(given: Given) -> str | None:
    """Say why a pickle is of this format, or None."""
    keys = keys_of(given.content)
    own = keys & {"regression_labels", "classification_labels"}
    if "labels" not in keys:
        own |= keys & {"raw_text", "text_bert"}  # what has no labels at all is told by these
    if not (own and "id" in keys):
        return None
    splits = ", ".join(splits_of(given.content))
    return f"a pickle of splits {splits} with {' and '.join(sorted(own))}"


class _Mmsa(Pickled):
    @property
    def labels_key(self) -> str:
        whole = self.settings.task is Task.classification
        return "classification_labels" if whole else "regression_labels"

    def lengths(self, split: str, key: str, shape: tuple[int, int]) -> IntArray | None:
        count, steps = shape
        if f"{key}_lengths" in self.splits[split]:
            lengths = self.numbers(split, f"{key}_lengths", count)
            whole = (lengths >= 0) & (lengths <= steps) & (np.trunc(lengths) == lengths)
            if lengths.ndim != 1 or not whole.all():
                raise self.fail(split, f"'{key}_lengths' are not whole numbers from 0 to {steps}")
            return lengths.astype(np.int64)
        if key == "text" and "text_bert" in self.splits[split]:
            mask = self.numbers(split, "text_bert", count)
            if mask.shape[1:] == (3, steps):
                tokens: IntArray = (mask[:, 1] > 0).sum(axis=1)
                return tokens
        return None


def _read(given: Given, settings: ReadSettings) -> Source:
    keys = keys_of(given.content)
    if "text" not in keys and "text_bert" in keys and "language" in settings.modalities:
        raise UserError(
            f"{given.path}: text_bert holds numbers of tokens; expected features in text"
        )
    return _Mmsa(given, settings).read()


FORMATS["mmsa"] = Format(recognise, _read, pickled=True)
