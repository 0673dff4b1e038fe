"""The baselines `pooled` and `centralised`, where they train one HA-Fedformer with every encoder.

`pooled`: all clients' items on one machine, still one modality an item; batches of one modality,
those of all modalities mixed. What a federation loses against it is what merging loses.
"""

from functools import partial

from common.config import FusionRule
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.seeding import derive_seed
from server.baselines.baseline import BASELINES, Baseline
from server.baselines.sites import Sites, from_one_modality
from server.baselines.training import (
    MULTIMODAL,
    Forward,
    OnePass,
    Training,
    one_modality_pass,
    pooled_items,
)
from server.run.source import OneModel


class FullModel(OneModel, Baseline):
    """An HA-Fedformer with every encoder; its fusion rule is fitted as in a federation.

    Parameters
    ----------
    sites
        The clients, whose evidence the rule is fitted to.
    model, forward, one_pass
        What is trained, how it is run, and on what; see `server.baselines.training.Training`.
    rule
        The fusion rule.
    """

    def __init__(
        self,
        sites: Sites,
        model: HAFedformer,
        forward: Forward,
        one_pass: OnePass,
        rule: FusionRule,
    ) -> None:
        super().__init__(sites)
        self.model = model
        self._rule = rule
        self._training = Training(model, forward, one_pass, sites.data.task, sites.config.client)
        self.fitted = self._fit()

    def train(self, number: int) -> dict[str, float]:
        """Train a round; return the mean loss of each modality, or of all together."""
        losses = self._training.round(derive_seed(self.sites.config.seed, "train", number))
        self.fitted = self._fit()
        titles = (*self.sites.data.shapes, MULTIMODAL)
        return {title: losses[title] for title in titles if title in losses}

    def _fit(self) -> Fusion:
        return self.sites.fit_fusion(self.model, self._rule)


def pooled(sites: Sites) -> FullModel:
    """Build the baseline; features are standardised with the moments of all train items."""
    client = sites.config.client
    model = sites.initial_model({name: sites.moments(name) for name in sites.by_modality})
    items = {
        name: pooled_items([sites.by_key[key] for key in keys])
        for name, keys in sites.by_modality.items()
    }
    one_pass = partial(one_modality_pass, items, client.batch_size, client.num_workers)
    forward = partial(from_one_modality, model)
    return FullModel(sites, model, forward, one_pass, sites.config.fusion.name)


BASELINES["pooled"] = pooled
