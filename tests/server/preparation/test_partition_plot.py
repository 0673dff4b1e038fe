"""The picture of a partition: a PNG that shows every shard's labels, the same for the same."""

import io
import struct
import warnings
from typing import Any

import matplotlib.axes
import numpy as np
import pytest
from matplotlib.image import imread

from common.data.manifest import Manifest
from common.data.shards import VERSION
from common.seal import SUFFIX
from common.task import Task
from server.preparation.partition_plot import partition_plot


def manifest_of(
    counts: dict[str, list[int]], bins: list[str], task: Task = Task.regression
) -> Manifest:
    """A manifest as far as the picture needs one."""
    shards = {
        f"{name}{SUFFIX}": {"items": sum(each), "labels": {"histogram": each}}
        for name, each in counts.items()
    }
    settings = {"label_bins": bins}
    return Manifest(VERSION, {}, task, 1, (), {}, {}, settings, {}, (), shards)


NUMBERS = ["-3 to -2", "-2 to -1", "-1 to 0", "0 to 1", "1 to 2", "2 to 3", "3 to 4"]


def numbers(*names: str) -> Manifest:
    rng = np.random.default_rng(0)
    return manifest_of({name: rng.integers(0, 50, 7).tolist() for name in names}, NUMBERS)


FEW = numbers("language-0", "audio-0", "validation", "test")
MANY = numbers(*(f"vision-{part}" for part in range(60)))
ONE = numbers("audio-0")
CLASSES = manifest_of(
    {"audio-0": [3, 0, 4], "audio-1": [0, 9, 1], "test": [5, 5, 5]},
    ["0", "1", "2"],
    Task.classification,
)
EMOTIONS = manifest_of(
    {"text-0": [9, 1, 0, 3, 0, 2], "audio-0": [1, 8, 2, 0, 0, 1], "test": [4, 4, 4, 4, 4, 4]},
    ["happiness", "sadness", "anger", "surprise", "disgust", "fear"],
    Task.multilabel,
)
ALL = {"few": FEW, "many": MANY, "one": ONE, "classes": CLASSES, "emotions": EMOTIONS}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Record what is drawn: bars by label, their names, and the words at the axes."""
    axes, found = matplotlib.axes.Axes, {"bars": {}}
    barh, ticks, words = axes.barh, axes.set_yticks, axes.set

    def record_bars(self: Any, y: Any, width: Any, *, left: Any, label: str, **style: Any) -> Any:
        found["bars"][label] = (list(y), list(width), list(left))
        return barh(self, y, width, left=left, label=label, **style)

    def record_names(self: Any, places: Any, names: Any, **style: Any) -> Any:
        found["names"] = dict(zip(places, names, strict=True))
        return ticks(self, places, names, **style)

    def record_words(self: Any, **given: Any) -> Any:
        found.update(given)
        return words(self, **given)

    monkeypatch.setattr(axes, "barh", record_bars)
    monkeypatch.setattr(axes, "set_yticks", record_names)
    monkeypatch.setattr(axes, "set", record_words)
    return found


def test_is_a_png_with_something_on_it_and_the_same_again() -> None:
    png = partition_plot(FEW)
    pixels = imread(io.BytesIO(png))[:, :, :3]
    assert len(np.unique((pixels * 255).astype(np.uint32) @ (1, 256, 65536))) > 20
    assert partition_plot(FEW) == png


def test_the_picture_grows_with_the_number_of_shards_to_a_limit() -> None:
    very_many = numbers(*(f"audio-{part}" for part in range(216)))
    pngs = [partition_plot(manifest) for manifest in (ONE, FEW, MANY, very_many)]
    assert all(png[:8] == b"\x89PNG\r\n\x1a\n" and png[12:16] == b"IHDR" for png in pngs)
    widths, heights = zip(*(struct.unpack(">II", png[16:24]) for png in pngs), strict=True)
    assert set(widths) == {1080}
    assert 264 <= heights[0] < heights[1] < heights[2] < heights[3] == 7200
    assert heights[2] / 60 > 30  # room for a line of text each


@pytest.mark.parametrize("manifest", ALL.values(), ids=ALL)
def test_every_shard_is_a_bar_divided_by_label(manifest: Manifest, drawn: dict[str, Any]) -> None:
    partition_plot(manifest)
    histograms = [shard["labels"]["histogram"] for shard in manifest.shards.values()]
    names = [name.removesuffix(SUFFIX) for name in manifest.shards]
    assert drawn["names"] == dict(enumerate(names))
    assert list(drawn["bars"]) == manifest.settings["label_bins"]
    before = np.zeros(len(names))
    for column, (places, widths, left) in enumerate(drawn["bars"].values()):
        assert places == list(range(len(names)))
        assert widths == [histogram[column] for histogram in histograms]
        assert left == before.tolist()
        before += widths
    assert before.tolist() == [sum(histogram) for histogram in histograms]
    # An item of several labels is counted once for each.
    assert drawn["xlabel"] == ("labels" if manifest.task is Task.multilabel else "items")


@pytest.mark.parametrize("count", [2, 40])
def test_any_number_of_classes_fits(count: int) -> None:
    rng = np.random.default_rng(0)
    many = manifest_of(
        {f"audio-{part}": rng.integers(0, 9, count).tolist() for part in range(9)},
        [str(number) for number in range(count)],
        Task.classification,
    )
    empty = manifest_of({"audio-0": [0, 0], "test": [1, 2]}, ["joy", "rage"], Task.multilabel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = imread(io.BytesIO(partition_plot(many)))[:, :, :3]
        partition_plot(empty)  # a shard without a label of several has no bar
    # The bars, which are not grey, take a good part of the picture.
    coloured = np.ptp(pixels, axis=2) > 0.2
    assert coloured.mean() > 0.2
