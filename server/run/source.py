"""What trains the rounds of a run: a federation, or a baseline of `server.baselines`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from common.data.dataset import MultimodalDataset
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer
from server.evaluate import Scores, diagnose, evaluate
from server.model_file import model_bytes
from server.records import PhaseClock, RoundRecord
from server.run.checkpoint import Checkpoint


class RoundSource(ABC):
    """Trains round by round, and scores the result."""

    #: "train", "validation" and "test" to how many there are.
    items: Mapping[str, int]
    #: Number of trained parameters of what predicts an item from all its modalities.
    parameters: int

    @property
    @abstractmethod
    def fusion(self) -> str:
        """How modalities are joined: a rule, or the name of an architecture that learns it."""

    @property
    def fusion_weights(self) -> Mapping[str, float]:
        """Modality to its weight after the last round; empty where nothing is weighted."""
        return {}

    @abstractmethod
    def round(self, number: int, clock: PhaseClock) -> RoundRecord:
        """Train a round, counted from 1; return its record without the evaluation.

        The clock counts the phases, and is restarted after a wait that is not part of the round.
        Raises `UserError` if the round has no result.
        """

    @abstractmethod
    def scores(self, items: MultimodalDataset) -> Scores:
        """Score the state after the last round; see `server.evaluate.evaluate`."""

    def results(self, items: MultimodalDataset) -> dict[str, Any]:
        """Return what the summary says of the test items besides their scores."""
        return {"diagnostics": {}}

    def model_file(self) -> bytes | None:
        """Return ``model.safetensors``, or None if what was trained is not one HA-Fedformer."""
        return None

    def checkpoint(self, number: int, seconds: float) -> Checkpoint | None:
        """Return what a run resumes from after a round; None if it cannot be resumed."""
        return None


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


class OneModel(RoundSource):
    """A source that trains one HA-Fedformer."""

    model: HAFedformer
    #: Fitted after the last round.
    fitted: Fusion

    @property
    def fusion(self) -> str:
        """The fusion rule."""
        return str(self.fitted.rule)

    @property
    def fusion_weights(self) -> Mapping[str, float]:
        """Modality to its weight."""
        return self.fitted.weights

    def scores(self, items: MultimodalDataset) -> Scores:
        """Score all modalities together, and each alone."""
        return evaluate(self.model, self.fitted, items)

    def results(self, items: MultimodalDataset) -> dict[str, Any]:
        """Diagnose all modalities together, and each alone."""
        return {"diagnostics": diagnose(self.model, self.fitted, items)}

    def model_file(self) -> bytes | None:
        """Return the model with its fusion rule."""
        return model_bytes(self.model, self.fitted)
