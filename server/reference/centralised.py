"""The bound `centralised`: as many items as the clients train on, each with every modality.

No federation of sites with one modality each can have these data. What is trained on them is
``strategy.architecture``: HA-Fedformer through the mean of its encodings, or another model.

Notation: B items, O outputs.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.config import Architecture, FusionRule
from common.data.batching import Padded
from common.data.dataset import MultimodalDataset
from common.data.federation import JointDataset
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.encoder import Encoder
from common.model.fusion import fuse_encodings
from common.model.ha_fedformer import HAFedformer
from common.seeding import derive_seed
from server.evaluate import Scores
from server.reference.batching import paired_pass
from server.reference.bound import Bound
from server.reference.cross_modal import CrossModal
from server.reference.early_fusion import EarlyFusion
from server.reference.scores import paired_diagnostics, paired_scores
from server.reference.sites import Sites
from server.reference.training import OnePass, Training
from server.reference.whole import WholeModel


def centralised(sites: Sites) -> Bound:
    """Build the bound; features are standardised with the moments of its train items.

    Raises
    ------
    UserError
        If the data are not paired, as shards of clients are not.
    """
    config, items = sites.config, paired_items(sites)
    moments = {name: FeatureMoments.of(each) for name, each in items.sequences.items()}
    initial = sites.initial_model(moments)
    one_pass = partial(paired_pass, items, config.client.batch_size)
    if config.strategy.architecture is Architecture.ha_fedformer:
        forward = partial(from_mean, initial)
        return WholeModel(sites, initial, forward, one_pass, FusionRule.mean)
    return OtherArchitecture(sites, build_other(sites, initial), one_pass)


class OtherArchitecture:
    """A model that takes all modalities at once and learns to join them; see `Bound`.

    It predicts numbers without a deviation, so its scores have no coverage.

    Parameters
    ----------
    sites
        Of the run.
    model
        Called with modality to `Padded`; gives outputs (B, O).
    one_pass
        See `server.reference.training.Training`.
    """

    def __init__(self, sites: Sites, model: nn.Module, one_pass: OnePass) -> None:
        self.model = model
        self._sites = sites
        self._training = Training(model, model, one_pass, sites.data.task, sites.config.client)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self._training.parameters

    @property
    def fusion(self) -> str:
        """Name of the architecture."""
        return str(self._sites.config.strategy.architecture)

    @property
    def fusion_weights(self) -> dict[str, float]:
        """Nothing is weighted."""
        return {}

    @property
    def client_losses(self) -> dict[str, float]:
        """No client trains by itself."""
        return {}

    def train(self, number: int) -> dict[str, float]:
        """Train a round; return the loss of what is predicted from all modalities."""
        return self._training.round(derive_seed(self._sites.config.seed, "train", number))

    def scores(self, items: MultimodalDataset) -> Scores:
        """Score all modalities together, and each alone with the others absent."""
        return paired_scores(self.model, self.model, items, self._sites.data.task)

    def diagnose(self, items: MultimodalDataset) -> dict[str, dict[str, Any]]:
        """Diagnose all modalities together, and each alone with the others absent."""
        return paired_diagnostics(self.model, self.model, items, self._sites.data.task)

    def model_file(self) -> None:
        """Return nothing: the file is of HA-Fedformer."""


def paired_items(sites: Sites) -> MultimodalDataset:
    """Return the items that clients train on, their validation items left out, unabridged.

    Raises
    ------
    UserError
        If the data hold only the modality of each client.
    """
    data = sites.data
    if not isinstance(data, JointDataset):
        raise UserError(
            f"strategy={sites.config.strategy.name} needs paired items; use dataset=npz or "
            "dataset=synthetic"
        )
    dealt = [data.dealt[key][site.train] for key, site in sites.by_key.items()]
    return data.items.select(np.sort(np.concatenate(dealt)))


def from_mean(model: HAFedformer, inputs: Mapping[str, Padded]) -> Tensor:
    """Run HA-Fedformer on all modalities at once: outputs (B, O) of the mean of the encodings."""
    encodings = {name: model.encode(name, padded) for name, padded in inputs.items()}
    lengths = {name: padded.lengths for name, padded in inputs.items()}
    fused, longest = fuse_encodings(encodings, lengths, dict.fromkeys(inputs, 1 / len(inputs)))
    outputs: Tensor = model.decoder(fused, longest)
    return outputs


def build_other(sites: Sites, initial: HAFedformer) -> nn.Module:
    """Build what ``strategy.architecture`` names beside HA-Fedformer.

    It has as many outputs as `initial`, standardises as that does, and its weights are drawn from
    the same seed.
    """
    kinds = {Architecture.early_fusion: EarlyFusion, Architecture.cross_modal: CrossModal}
    kind = kinds[sites.config.strategy.architecture]
    standardise = {}
    for name, encoder in initial.encoders.items():
        assert isinstance(encoder, Encoder)
        standardise[name] = encoder.standardise
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(sites.config.seed, "model"))
        return kind(standardise, sites.data.outputs, sites.config.model)
