"""CmDA, cross-modal decoder aggregation, across modalities.

Each modality m brings one decoder W_m, the average of its clients'. Layer by layer, each modality
in turn is the anchor and attends to the others n != m by their distance:

    alpha_mn = softmax_n (sign ||W_m - W_n|| / (tau D)),   D the mean distance between modalities
    W'_m = W_m - eps sum_n alpha_mn (W_m - W_n) + noise
    W = mean_m W'_m = sum_m w_m W_m,   w_m = (1 - eps + eps sum_n alpha_nm) / M,   sum_m w_m = 1

So all that CmDA does is to choose the w_m; where alpha is symmetric (two modalities, say) they are
equal and W is the plain mean.

Source: arXiv 2303.15486, section 4, with eps, sign and noise of its code. A layer is one array of
the decoder.

Notation: M modalities.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from common.config import DecoderConfig
from server.aggregation.average import WeightedSum
from server.aggregation.rules import RULES, Arrays, Rule, Setting, Shares


def cmda_weights(layers: list[Tensor], config: DecoderConfig) -> Tensor:
    """Return w (M,) for one layer W_m of each modality, equal shapes.

    float64, with sum 1; negative may be that of a modality that nobody attends to. `config` has
    ``epsilon``, ``temperature`` tau above 0, and ``sign`` 1 (the farther weighs more) or -1.
    """
    modalities = len(layers)
    if modalities == 1:
        return torch.ones(1, dtype=torch.float64)
    flat = torch.stack([layer.double().flatten() for layer in layers])
    distances = (flat[:, None] - flat[None]).norm(dim=2)
    mean_distance = distances.sum() / (modalities * (modalities - 1))
    scale = config.sign / (config.temperature * mean_distance) if mean_distance > 0 else 0.0
    itself = torch.eye(modalities, dtype=torch.bool)
    attention = (scale * distances).masked_fill(itself, -torch.inf).softmax(dim=1)
    weights: Tensor = (1 - config.epsilon + config.epsilon * attention.sum(dim=0)) / modalities
    return weights


def merge_decoders(sums: Mapping[str, WeightedSum], setting: Setting) -> tuple[Arrays, Shares]:
    """Merge the modalities' decoders, layer by layer; return W, float32, and layer to m to w_m.

    Raises ValueError if they are not of the same arrays. Noise is drawn in the model's order.
    """
    first, *others = sums.values()
    for other in others:
        if fault := other.layout.difference(first.layout):
            raise ValueError(f"decoders that do not fit together: {fault}")
    decoders, config = [total.finish() for total in sums.values()], setting.config.decoder
    merged, shares = {}, {}
    for name in setting.current:
        layers = [decoder[name] for decoder in decoders]
        w = cmda_weights(layers, config)
        shares[name] = dict(zip(sums, w.tolist(), strict=True))
        mean = sum(share * layer.double() for share, layer in zip(w, layers, strict=True))
        # The mean of M independent draws of the same deviation.
        noise = torch.randn(layers[0].shape, dtype=torch.float64, generator=setting.generator)
        merged[name] = (mean + config.noise / len(layers) ** 0.5 * noise).float()
    return merged, shares


RULES["cmda"] = Rule(WeightedSum, lambda total, _: total.finish(), merge_decoders, ("decoder",))
