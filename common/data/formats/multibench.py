"""MultiBench: ``mosi_raw.pkl`` and ``mosei_raw.pkl``, padded on the left, ids ``video[segment]``.

Labels have one column, or in CMU-MOSEI seven: the sentiment and six emotions.
Source: https://github.com/pliang279/MultiBench.
"""

from pathlib import Path

from common.data.formats import mmsa
from common.data.formats.pickled import MODALITIES, Pickled, keys_of, splits_of
from common.data.source import ReadSettings, Source


def recognise(content: object) -> str | None:
    """Say why the contents of a pickle are of this format, or None."""
    keys = keys_of(content)
    if not ("id" in keys and keys & set(MODALITIES)):
        return None
    if "labels" not in keys and mmsa.recognise(content):
        return None
    return f"a pickle of splits {', '.join(splits_of(content))} with ids of text"


def read(content: object, path: Path, settings: ReadSettings) -> Source:
    """Read the contents of a pickle; arrays are taken out of `content`.

    Raises
    ------
    UserError
        If they are not what the format says.
    """
    return Pickled(path, content, settings).read()
