"""Items to predict, a few at a time, from any source that `utmp-prepare` reads, and from shards.

Shards, and tables whose arrays are ``.npy`` files, are read a part at a time, however large they
are. Other formats are read whole.

Notation: N items.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common.data.dataset import ItemPart, longest_of
from common.data.formats.registry import FORMATS, recognise
from common.data.manifest import MANIFEST
from common.data.shards import ShardStream
from common.data.source import ReadSettings
from common.errors import UserError
from common.seal import SUFFIX

#: The name of the format that no reader of `common.data.formats` has.
SHARD = "shard"


@dataclass(frozen=True)
class ItemStream:
    """A source of N items."""

    format: str
    why: str  # one line: what it was recognised by
    count: int  # N
    parts: Callable[[int], Iterator[ItemPart]]  # yields all items in order, so many at a time
    #: What was not used, and how many times; whole once all parts are taken.
    cleaning: Mapping[str, int] = field(default_factory=dict)
    label_names: tuple[str, ...] = ()  # of classes or labels, where the source says it


def open_items(paths: Sequence[Path], format: str, settings: ReadSettings) -> ItemStream:
    """Open a source of items to predict.

    `paths` are shards, or one source as `common.data.formats.registry.read_source` takes it;
    `format` is its format, "shard", or "auto" to recognise it; `settings` have `predicting` set.

    Raises `UserError` if it cannot be read or has no items; what is wrong further on is raised
    while parts are taken.
    """
    path, settings = paths[0], replace(settings, notes={})
    if format in (SHARD, "auto") and (path / MANIFEST).exists():
        names = sorted(file.name for file in path.glob(f"*{SUFFIX}"))
        raise UserError(
            f"{path} is a folder of shards; give one or several of them: {', '.join(names[:6])}"
        )
    if format == SHARD or (format == "auto" and path.is_file() and path.suffix == SUFFIX):
        return _shards(paths, settings)
    stream = _source(paths, format, settings)
    if stream.count == 0:
        raise UserError(f"{path} has no items")
    return stream


def _shards(paths: Sequence[Path], settings: ReadSettings) -> ItemStream:
    streams = [ShardStream.open(path) for path in paths]
    wanted = settings.modalities
    for stream in streams:
        if wanted and not set(wanted) & set(stream.info.modalities):
            raise UserError(
                f"shard {stream.path} holds {', '.join(stream.info.modalities)}, and none of "
                f"{', '.join(wanted)}"
            )

    def parts(size: int) -> Iterator[ItemPart]:
        for stream in streams:
            for first in range(0, stream.count, size):
                ids, sequences = stream.part(first, first + size)
                what, prepared = f"shard {stream.path}", stream.info.reading
                settings.check_prepared(what, prepared, longest_of(sequences))
                names = [name for name in wanted or sequences if name in sequences]
                yield ItemPart(ids, settings.take({name: sequences[name] for name in names}))

    names = ", ".join(stream.info.name for stream in streams)
    count = sum(stream.count for stream in streams)
    return ItemStream(SHARD, names, count, parts, settings.notes, streams[0].info.label_names)


def _source(paths: Sequence[Path], format: str, settings: ReadSettings) -> ItemStream:
    given, name, why = recognise(paths, format, settings)
    stream = FORMATS[name].stream(given, settings)
    if stream is not None:
        return ItemStream(name, why, *stream, settings.notes)
    items = FORMATS[name].read(given, settings).items

    def parts(size: int) -> Iterator[ItemPart]:
        for first in range(0, len(items), size):
            part = items.select(np.arange(first, min(first + size, len(items))))
            sequences = {name: whole.narrowed() for name, whole in part.sequences.items()}
            yield ItemPart(part.ids, sequences)

    return ItemStream(name, why, len(items), parts, items.cleaning)
