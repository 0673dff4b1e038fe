"""What each client got, as a picture."""

import io

import numpy as np

from common.data.manifest import Manifest
from common.seal import SUFFIX

PLOT = "partition.png"

#: Letters of a label in the legend.
_LONGEST = 24


def partition_plot(manifest: Manifest) -> bytes:
    """Draw each shard's items as a bar, divided by label: a PNG, equal for equal manifests."""
    # Imported here: half a second that no other command needs.
    import matplotlib
    import matplotlib.figure

    names = list(manifest.shards)
    bins = manifest.settings["label_bins"]
    counts = np.array([manifest.shards[name]["labels"]["histogram"] for name in names])
    height = max(2.2, 0.28 * len(names) + 1.4)
    figure = matplotlib.figure.Figure(figsize=(9, min(height, 60)), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, len(bins)))
    left = np.zeros(len(names))
    for label, width, colour in zip(bins, counts.T, colours, strict=True):
        short = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
        # As it is: no formula, and not hidden, as a name with an underscore in front would be.
        plain = short.replace("$", r"\$").replace("_", " ", 1 if short.startswith("_") else 0)
        axes.barh(range(len(names)), width, left=left, color=colour, label=plain)
        left += width
    axes.set_yticks(range(len(names)), [name.removesuffix(SUFFIX) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    axes.set(xlabel="items" if manifest.task != "multilabel" else "labels", title="Who got what")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", title="label", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
