"""How wide the clients' posteriors are, layer by layer: one number to watch, not to merge by.

A layer is a module's tensors together, ``weight`` and ``bias``. With P_k the precision of element k
of the d elements of a layer that have one, on the diagonal of its tensor's precision,

    width = (1/d sum_k P_k)^(-1/2)

the standard deviation that all elements would have if they were independent and equally sure, with
the same mean precision. Along the principal axes of one Gaussian it is the root of the harmonic
mean of the variances: the directions that are known best count most. It costs a look at each
diagonal.

What it is in depends on the structure. Of samples with ``scale: absolute``: units of the weights.
With ``relative`` the client's scale is out of it: 1 says that no direction is known better than
another, less that some are, down to the root of the shrinkage. Of ``inputs``: 1 over the root mean
square of what the layer reads. Without a precision, as under ``low_rank`` or for averages, there is
none.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch

from common.messages import Uplink
from common.posterior import Form, Gaussian, Posterior

#: The most clients whose widths are told; of more, so many of each modality, the first.
MOST_CLIENTS = 32

#: Significant digits: a round's record is a line of text.
_DIGITS = 4


def posterior_widths(uplinks: Iterable[Uplink]) -> dict[str, dict[str, float]]:
    """Return the widths of a round's posteriors.

    Parameters
    ----------
    uplinks
        Updates that were accepted, in any order.

    Returns
    -------
    dict
        Client to layer to width, in the order of the clients; layers are named ``encoder.…`` and
        ``decoder.…``. Clients and layers without a precision are left out.
    """
    found = {}
    # One at a time: they may be large.
    for uplink in uplinks:
        widths = _layers("encoder", uplink.encoder) | _layers("decoder", uplink.decoder)
        if widths:
            found[uplink.key] = widths
    return {str(key): found[key] for key in sorted(found)}


def layer_widths(posterior: Posterior) -> dict[str, float]:
    """Return the width of each layer that has a precision."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for name, gaussian in posterior.items():
        if gaussian.precision is not None:
            layer = name.removesuffix(".weight").removesuffix(".bias")
            size = gaussian.mean.numel()
            sums[layer] += _mean_precision(gaussian) * size
            counts[layer] += size
    return {layer: float((sums[layer] / counts[layer]) ** -0.5) for layer in sums}


def _layers(part: str, posterior: Posterior) -> dict[str, float]:
    widths: Mapping[str, float] = layer_widths(posterior)
    return {f"{part}.{layer}": float(f"{width:.{_DIGITS}g}") for layer, width in widths.items()}


def _mean_precision(gaussian: Gaussian) -> float:
    """Return the mean over a tensor's elements; every row of a map has the same precisions."""
    assert gaussian.precision is not None
    row = gaussian.form is Form.row
    precision = gaussian.precision.diagonal() if row else gaussian.precision
    return precision.mean(dtype=torch.float64).item()


def first_clients(uplinks: Sequence[Uplink]) -> list[Uplink]:
    """Return all updates, or of more than `MOST_CLIENTS` the first of each modality."""
    ordered = sorted(uplinks, key=lambda uplink: uplink.key)
    if len(ordered) <= MOST_CLIENTS:
        return ordered
    by_modality: dict[str, list[Uplink]] = defaultdict(list)
    for uplink in ordered:
        by_modality[uplink.key.modality].append(uplink)
    each = max(1, MOST_CLIENTS // len(by_modality))
    return [uplink for members in by_modality.values() for uplink in members[:each]]
