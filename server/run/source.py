"""What trains the rounds of a run and predicts with their result."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from torch import Tensor, nn

from common.config import Config
from common.data.dataset import MultimodalDataset
from common.data.federation import FederatedDataset
from common.data.moments import FeatureMoments
from common.metrics import is_sentiment
from common.model.fusion import Fusion
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model, set_standardisation
from common.seeding import derive_seed
from server.evaluate import Answer, Scores, answers, evaluate
from server.model_file import model_bytes
from server.records import PhaseClock, RoundRecord
from server.run.checkpoint import Checkpoint
from server.run.linear import Experts, set_linear


class RoundSource(ABC):
    """Trains round by round, and scores the result.

    What it predicts with is `modules` and `fitted`: the state after the last round, or after the
    one that `restore` went back to.
    """

    #: Number of train items of all clients.
    examples: int
    #: Number of trained parameters of what predicts an item from all its modalities.
    parameters: int
    #: What joins the modalities; a round replaces it and never changes it.
    fitted: Any = None
    #: Of the train labels, see `common.model.calibration.prior_of`.
    prior: Tensor

    @property
    @abstractmethod
    def modules(self) -> Sequence[nn.Module]:
        """The modules that predict."""

    def keep(self) -> None:
        """Keep a copy of the state, in place of the one kept before."""
        self._kept = deepcopy([module.state_dict() for module in self.modules]), self.fitted

    def restore(self) -> None:
        """Go back to the state that was kept."""
        states, self.fitted = self._kept
        for module, state in zip(self.modules, states, strict=True):
            module.load_state_dict(state)

    #: After how many rounds there is nothing left to train, whatever ``rounds`` asks for.
    most_rounds: float = math.inf

    @property
    @abstractmethod
    def fusion(self) -> str:
        """How modalities are joined: a rule, or the name of an architecture that learns it."""

    @property
    def fusion_weights(self) -> Mapping[str, float]:
        """Modality to its weight; empty where nothing is weighted."""
        return {}

    @abstractmethod
    def round(self, number: int, clock: PhaseClock) -> RoundRecord:
        """Train a round, counted from 1; return its record without the evaluation.

        The clock counts the phases, and is restarted after a wait that is not part of the round.
        Raises `UserError` if the round has no result.
        """

    @abstractmethod
    def scores(self, items: MultimodalDataset) -> Scores:
        """Score the state; see `server.evaluate.evaluate`."""

    def answers(self, items: MultimodalDataset) -> Mapping[str, Answer]:
        """Return what is predicted of ``multimodal`` and each modality alone.

        Nothing where each is predicted by several models.
        """
        return {}

    def results(self, items: MultimodalDataset) -> dict[str, Any]:
        """Return what the summary says of the test items besides their scores."""
        return {}

    def model_file(self) -> bytes | None:
        """Return the file of the model, or None if what was trained is not one HA-Fedformer."""
        return None

    def checkpoint(self, number: int, seconds: float) -> Checkpoint | None:
        """Return what a run resumes from after a round; None if it cannot be resumed."""
        return None


class OneModel(RoundSource):
    """A source that trains one HA-Fedformer."""

    model: HAFedformer
    fitted: Fusion

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The model."""
        return [self.model]

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

    def answers(self, items: MultimodalDataset) -> Mapping[str, Answer]:
        """Predict from all modalities together, and from each alone."""
        return answers(self.model, self.fitted, items)

    def model_file(self) -> bytes | None:
        """Return the model with its fusion rule."""
        return model_bytes(self.model, self.fitted)


#: For models without linear experts.
NO_EXPERTS = Experts()


def initial_model(
    config: Config,
    data: FederatedDataset,
    moments: Mapping[str, FeatureMoments],
    experts: Experts = NO_EXPERTS,
) -> HAFedformer:
    """Build the model that every run of a seed starts from.

    It standardises the features of the given modalities with their moments, and has a linear expert
    of each modality for which there are sums.
    """
    spec = ModelSpec(
        dict(data.shapes),
        data.outputs,
        data.task,
        config.model,
        data.label_names,
        is_sentiment(np.concatenate([data.validation.labels, data.test.labels])),
        tuple(name for name in data.shapes if name in experts.sums),
        data.reading,
    )
    model = build_model(spec, derive_seed(config.seed, "model"))
    for name, measured in moments.items():
        set_standardisation(model, name, measured)
    for name in spec.linear:
        set_linear(model, name, experts.sums[name], experts.prior, data.validation)
    return model


def count_parameters(model: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
