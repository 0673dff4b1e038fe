"""The picture of a partition: a PNG that shows every shard's labels, the same for the same."""

import io
import struct

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from common.data.manifest import Manifest
from common.data.shards import VERSION
from common.data.source import Reading
from common.seal import SUFFIX
from common.task import Task
from server.preparation.console import partition_plot


def manifest_of(
    counts: dict[str, list[int]], bins: list[str], task: Task = Task.regression
) -> Manifest:
    """A manifest as far as the picture needs one."""
    shards = {
        f"{name}{SUFFIX}": {"items": sum(each), "labels": {"histogram": each}}
        for name, each in counts.items()
    }
    settings = {"label_bins": bins}
    return Manifest(VERSION, {}, task, 1, (), {}, {}, settings, Reading(), {}, (), shards)


def random(task: Task, bins: int, *names: str) -> Manifest:
    rng = np.random.default_rng(0)
    counts = {name: rng.integers(0, 50, bins).tolist() for name in names}
    return manifest_of(counts, [f"{number} to {number + 1}" for number in range(bins)], task)


def vision(number: int) -> Manifest:
    return random(Task.regression, 7, *(f"vision-{part}" for part in range(number)))


FEW = random(Task.regression, 7, "language-0", "audio-0", "validation", "test")
EMOTIONS = manifest_of(
    {"text-0": [9, 1, 0, 3], "audio-0": [0, 0, 0, 0], "test": [4, 4, 4, 4]},
    ["happiness", "sadness", "_anger_", "$surprise$"],
    Task.multilabel,
)
MANY_CLASSES = random(Task.classification, 40, *(f"audio-{part}" for part in range(9)))
ALL = {"few": FEW, "many": vision(60), "one": vision(1), "several": EMOTIONS, "40": MANY_CLASSES}


def pixels_of(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png))[:, :, :3]


def test_is_a_png_with_something_on_it_and_the_same_again() -> None:
    png = partition_plot(FEW)
    pixels = (pixels_of(png) * 255).astype(np.uint32) @ (1, 256, 65536)
    assert len(np.unique(pixels)) > 20
    assert partition_plot(FEW) == png
    # The bars, which are not grey, take a good part of the picture.
    assert (np.ptp(pixels_of(partition_plot(MANY_CLASSES)), axis=2) > 0.2).mean() > 0.2


def test_the_picture_grows_with_the_number_of_shards_to_a_limit() -> None:
    pngs = [partition_plot(vision(number)) for number in (1, 4, 60, 216)]
    assert all(png[:8] == b"\x89PNG\r\n\x1a\n" and png[12:16] == b"IHDR" for png in pngs)
    widths, heights = zip(*(struct.unpack(">II", png[16:24]) for png in pngs), strict=True)
    assert set(widths) == {1080}
    assert 264 <= heights[0] < heights[1] < heights[2] < heights[3] == 7200
    assert heights[2] / 60 > 30  # room for a line of text each


@pytest.mark.parametrize("manifest", ALL.values(), ids=ALL)
def test_every_shard_is_a_bar_divided_by_label(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Axes] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.extend(self.axes))
    partition_plot(manifest)
    (axes,) = drawn
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [name.removesuffix(SUFFIX) for name in manifest.shards]
    assert axes.get_yticks().tolist() == list(range(len(names)))
    counts = np.array([shard["labels"]["histogram"] for shard in manifest.shards.values()])
    expected = np.stack([np.cumsum(counts, axis=1) - counts, counts], axis=2)
    bars = [[(bar.get_x(), bar.get_width()) for bar in label] for label in axes.containers]
    assert np.array(bars).transpose(1, 0, 2).tolist() == expected.tolist()
    places = [[bar.get_y() + bar.get_height() / 2 for bar in label] for label in axes.containers]
    np.testing.assert_allclose(places, [range(len(names))] * counts.shape[1], atol=1e-9)
    # A formula or a hidden label would not be shown.
    labels = [str(label.get_label()) for label in axes.containers]
    assert labels == [
        name.replace("$", r"\$").replace("_anger", " anger")
        for name in manifest.settings["label_bins"]
    ]
    # An item of several labels is counted once for each.
    assert axes.get_xlabel() == ("labels" if manifest.task is Task.multilabel else "items")
