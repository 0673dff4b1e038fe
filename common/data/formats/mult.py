"""MulT: ``mosi_data.pkl``, ``mosei_senti_data.pkl`` and their ``_noalign`` kin.

As MultiBench, but each modality has a number of steps of its own where they are not aligned, and an
id is a row of byte strings: video, start, end.
Source: https://github.com/yaohungt/Multimodal-Transformer.
"""

import numpy as np

from common.data.formats.pickled import MODALITIES, Pickled, keys_of, splits_of
from common.data.formats.registry import FORMATS, Format, Given


def _recognise(given: Given) -> str | None:
    keys, splits = keys_of(given.content), splits_of(given.content)
    if not ("id" in keys and keys & set(MODALITIES)):
        return None
    if not all(_rows_of_bytes(split["id"]) for split in splits.values() if "id" in split):
        return None
    return f"a pickle of splits {', '.join(splits)} whose ids are rows of byte strings"


def _rows_of_bytes(ids: object) -> bool:
    """Tell rows (video, start, end), or bare names of videos, from "video[segment]"."""
    if isinstance(ids, np.ndarray):
        if ids.ndim == 2:
            return True
        ids = ids.ravel()[:1].tolist()
    first = ids[0] if isinstance(ids, list | tuple) and ids else None
    bare = isinstance(first, bytes) and not first.endswith(b"]")
    return bare or isinstance(first, np.ndarray)


FORMATS["mult"] = Format(
    _recognise, lambda given, settings: Pickled(given, settings).read(), pickled=True
)
