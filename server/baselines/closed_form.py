"""The baseline `closed_form`: the linear experts alone, fitted once, with no network.

The model is HA-Fedformer with a head of zeros, so its outputs are those of the experts, through the
same fusion as all others; it is stored, exported and served like them.
"""

import torch

from common.errors import UserError
from common.model.ha_fedformer import task_loss
from server.baselines.baseline import Baseline, Sites
from server.baselines.training import BATCH, one_modality_pass, pooled_items
from server.run.source import OneModel, initial_model


class ClosedForm(OneModel, Baseline):
    """A model of nothing but linear experts, which has one round.

    Raises `UserError` where there are to be none, or a modality is too wide for one.
    """

    most_rounds = 1

    def __init__(self, sites: Sites) -> None:
        super().__init__(sites)
        config, data = sites.config, sites.data
        moments = {name: sites.moments(name) for name in sites.by_modality}
        self.model = initial_model(config, data, moments, sites.experts(moments))
        for name in data.shapes:
            if name not in self.model.spec.linear:
                raise UserError(
                    f"strategy={config.strategy.name} predicts by linear experts, and {name} has "
                    "none: expected strategy.linear=true, and narrower features"
                )
        for parameter in self.model.decoder.head.parameters():
            torch.nn.init.zeros_(parameter)
        # Of the experts, which are all that predicts.
        self.parameters = sum(
            buffer.numel()
            for encoder in map(self.model.encoder, data.shapes)
            if encoder.linear
            for buffer in encoder.linear.buffers()
        )
        self.fitted = sites.fit_fusion(self.model, config.fusion.name)

    @torch.inference_mode()
    def train(self, number: int) -> dict[str, float]:
        """Train nothing; return each modality's mean loss on the train items."""
        sites, means = self.sites, {}
        for name, keys in sites.by_modality.items():
            items = pooled_items([sites.by_key[key] for key in keys])
            losses = [
                task_loss(
                    self.model.linear_outputs(name, batch.inputs[name]),
                    batch.labels,
                    sites.data.task,
                )
                * len(batch.labels)
                for batch in one_modality_pass({name: items}, BATCH, 0, number)
            ]
            means[name] = (torch.stack(losses).sum() / len(items)).item()
        return means
