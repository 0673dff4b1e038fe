"""One whole HA-Fedformer in training, whatever its batches hold."""

from typing import Any

from common.config import FusionRule
from common.data.dataset import MultimodalDataset
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from common.seeding import derive_seed
from server.evaluate import Scores, diagnose, evaluate
from server.model_file import model_bytes
from server.reference.batching import MULTIMODAL
from server.reference.sites import Sites
from server.reference.training import Forward, OnePass, Training


class WholeModel:
    """An HA-Fedformer with every encoder; see `server.reference.bound.Bound`.

    Its fusion rule is fitted to the clients' evidence, as in a federation.

    Parameters
    ----------
    sites
        Where the evidence comes from.
    model, forward, one_pass
        What is trained, how it is run, and on what; see `server.reference.training.Training`.
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
        self.model = model
        self._sites, self._rule = sites, rule
        self._training = Training(model, forward, one_pass, sites.data.task, sites.config.client)
        self._fusion = self._fit()

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self._training.parameters

    @property
    def fusion(self) -> str:
        """The fusion rule."""
        return str(self._fusion.rule)

    @property
    def fusion_weights(self) -> dict[str, float]:
        """Modality to its weight."""
        return self._fusion.weights

    @property
    def client_losses(self) -> dict[str, float]:
        """No client trains by itself."""
        return {}

    def train(self, number: int) -> dict[str, float]:
        """Train a round; return the mean loss of each modality, or of all together."""
        losses = self._training.round(derive_seed(self._sites.config.seed, "train", number))
        self._fusion = self._fit()
        return {
            title: losses[title]
            for title in (*self._sites.data.shapes, MULTIMODAL)
            if title in losses
        }

    def scores(self, items: MultimodalDataset) -> Scores:
        """Score all modalities together and each alone."""
        return evaluate(self.model, self._fusion, items)

    def diagnose(self, items: MultimodalDataset) -> dict[str, dict[str, Any]]:
        """Diagnose all modalities together and each alone."""
        return diagnose(self.model, self._fusion, items)

    def model_file(self) -> bytes:
        """Return the model with its fusion rule."""
        return model_bytes(self.model, self._fusion)

    def _fit(self) -> Fusion:
        return self._sites.fit_fusion(self.model, self._rule)
