"""What a bound is to the run that trains and records it."""

from collections.abc import Mapping
from typing import Any, Protocol

from common.data.dataset import MultimodalDataset
from server.evaluate import Scores


class Bound(Protocol):
    """One or several models in training."""

    @property
    def parameters(self) -> int:
        """Number of trained parameters of what predicts an item from all its modalities."""

    @property
    def fusion(self) -> str:
        """How modalities are joined: a rule, or the name of an architecture that learns it."""

    @property
    def fusion_weights(self) -> Mapping[str, float]:
        """Modality to its weight, after the last round; empty where nothing is weighted."""

    @property
    def client_losses(self) -> Mapping[str, float]:
        """Client to its train loss in the last round; empty where none trains by itself."""

    def train(self, number: int) -> dict[str, float]:
        """Train the round of that number, from 1, and fit what joins the modalities.

        Returns
        -------
        dict
            Modality, or ``multimodal``, to the mean train loss.
        """

    def scores(self, items: MultimodalDataset) -> Scores:
        """Score what there is after the last round; see `server.evaluate.evaluate`."""

    def diagnose(self, items: MultimodalDataset) -> Mapping[str, Mapping[str, Any]]:
        """See `server.evaluate.diagnose`; empty where no one model predicts."""

    def model_file(self) -> bytes | None:
        """Return ``model.safetensors``, or None if what was trained is not one HA-Fedformer."""
