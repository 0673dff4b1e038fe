"""How uncertain the clients' posteriors are, layer by layer: a number to watch, not to merge by.

A layer is a module's tensors together, ``weight`` and ``bias``. With P_k the precision of element k
of the d elements of a layer that have one, on the diagonal of its tensor's precision,

    std = (1/d sum_k P_k)^(-1/2)

the standard deviation that all elements would have if they were independent and equally certain,
with the same mean precision. Along the principal axes of one Gaussian it is the root of the
harmonic mean of the variances: the directions that are known best count most.

Its unit depends on the structure. Of samples with ``scale: absolute``: units of the weights. With
``relative`` the client's scale is removed: 1 says that no direction is known better than another,
less that some are, down to the root of the shrinkage. Of ``inputs``: 1 over the root mean square of
what the layer reads. Without a precision, as under ``low_rank`` or for averages, there is none.
"""

from collections import defaultdict

from common.messages import Uplink
from common.posterior import Posterior

#: The most clients in a report; of more, the first of each modality.
MOST_CLIENTS = 32

#: Significant digits: a round's record is a line of text.
_DIGITS = 4


def layer_std(posterior: Posterior) -> dict[str, float]:
    """Return the standard deviation of each layer that has a precision."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    sizes = dict(zip(posterior.layout.names, posterior.layout.sizes, strict=True))
    for name, mean in sorted(posterior.mean_precisions.items()):
        layer = name.removesuffix(".weight").removesuffix(".bias")
        sums[layer] += mean * sizes[name]
        counts[layer] += sizes[name]
    return {layer: float((sums[layer] / counts[layer]) ** -0.5) for layer in sums}


def posterior_std(uplink: Uplink) -> dict[str, float]:
    """Return ``encoder.…`` and ``decoder.…`` layers to standard deviation, rounded."""
    parts = (("encoder", uplink.encoder), ("decoder", uplink.decoder))
    return {
        f"{part}.{layer}": float(f"{std:.{_DIGITS}g}")
        for part, posterior in parts
        for layer, std in layer_std(posterior).items()
    }
