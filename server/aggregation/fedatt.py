"""FedAtt, attention over clients: layer by layer, the farther a client is the more it counts.

From the current W, with the clients' W_k:

    alpha = softmax_k ||W - W_k||,   W <- W - eps (sum_k alpha_k (W - W_k) + noise)

Source: Ji et al. 2019, arXiv 1812.07108.
"""

import torch

from server.aggregation.robust import ClientUpdates
from server.aggregation.rules import RULES, Arrays, Rule, Setting


def attend(updates: ClientUpdates, setting: Setting) -> Arrays:
    """Move the current arrays towards the clients', the farther the more; float32."""
    merged, stacked, config = {}, updates.stacked(), setting.config.fedatt
    for name in [name for name in setting.current if name in stacked]:
        current = setting.current[name].double()
        ahead = current - stacked[name]
        attention = ahead.reshape(len(ahead), -1).norm(dim=1).softmax(dim=0)
        pull = torch.tensordot(attention, ahead, dims=1)
        noise = torch.randn(pull.shape, dtype=torch.float64, generator=setting.generator)
        merged[name] = (current - config.epsilon * (pull + config.noise * noise)).float()
    return merged


RULES["fedatt"] = Rule(ClientUpdates, attend)
