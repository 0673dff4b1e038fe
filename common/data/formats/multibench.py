"""MultiBench: ``mosi_raw.pkl`` and ``mosei_raw.pkl``, padded on the left, ids ``video[segment]``.

Labels have one column, or in CMU-MOSEI seven: the sentiment and six emotions.
Source: https://github.com/pliang279/MultiBench.
"""

from common.data.formats import mmsa
from common.data.formats.pickled import MODALITIES, Pickled, keys_of, splits_of
from common.data.formats.registry import FORMATS, Format, Given


def _recognise(given: Given) -> str | None:
    keys = keys_of(given.content)
    if not ("id" in keys and keys & set(MODALITIES)):
        return None
    if "labels" not in keys and mmsa.recognise(given):
        return None
    return f"a pickle of splits {', '.join(splits_of(given.content))} with ids of text"


FORMATS["multibench"] = Format(
    _recognise, lambda given, settings: Pickled(given, settings).read(), pickled=True, last=True
)
