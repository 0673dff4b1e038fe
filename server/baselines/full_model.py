"""The baseline `pooled`, and any other that trains one HA-Fedformer with every encoder.

`pooled`: all clients' items on one machine, still one modality an item; batches of one modality,
those of all modalities mixed. What a federation loses against it is what merging loses.
"""

from common.config import FusionRule
from common.model.ha_fedformer import HAFedformer
from common.seeding import derive_seed
from server.baselines.baseline import BASELINES, Baseline
from server.baselines.sites import Sites
from server.baselines.training import MULTIMODAL, Training, one_modality_training, pooled_items
from server.run.source import OneModel


class FullModel(OneModel, Baseline):
    """An HA-Fedformer with every encoder; its fusion rule is fitted as in a federation."""

    def __init__(
        self, sites: Sites, model: HAFedformer, training: Training, rule: FusionRule
    ) -> None:
        super().__init__(sites)
        self.model, self._training, self._rule = model, training, rule
        self.fitted = sites.fit_fusion(model, rule)

    def train(self, number: int) -> dict[str, float]:
        """Train a round; return the mean loss of each modality, or of all together."""
        losses = self._training.round(derive_seed(self.sites.config.seed, "train", number))
        self.fitted = self.sites.fit_fusion(self.model, self._rule)
        titles = (*self.sites.data.shapes, MULTIMODAL)
        return {title: losses[title] for title in titles if title in losses}


def pooled(sites: Sites) -> FullModel:
    """Build the baseline; features are standardised with the moments of all train items."""
    model = sites.initial_model({name: sites.moments(name) for name in sites.by_modality})
    items = {
        name: pooled_items([sites.by_key[key] for key in keys])
        for name, keys in sites.by_modality.items()
    }
    training = one_modality_training(model, items, sites.data.task, sites.config.client)
    return FullModel(sites, model, training, sites.config.fusion.name)


BASELINES["pooled"] = pooled
