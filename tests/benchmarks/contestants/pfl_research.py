"""FedAvg of pfl-research (github.com/apple/pfl-research), on its simulated backend.

Its average is over all clients, and so dilutes an encoder that only some of them train.
"""

import itertools
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from work import Padded, Work

work, rounds = Work.read()
NAMES = list(work.validation)


class Module(torch.nn.Module):
    """The model with the two functions that pfl-research asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = work.model()

    def loss(self, values: Any, lengths: Any, labels: Any, modality: str) -> Any:
        """Return the loss of a batch."""
        self.train()
        return work.loss(self.inner, modality, Padded(values, lengths), labels)

    def metrics(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing: clients do not evaluate."""
        return {"items": Weighted(0, 1)}


class Items(Dataset):
    """A user's items, in shuffled batches."""

    def iter(self, batch_size: int | None) -> Any:
        """Yield batches."""
        values, lengths, labels = self.raw_data
        for index in torch.randperm(len(labels)).split(batch_size or len(labels)):
            yield values[index], lengths[index], labels[index]


def user(number: int) -> Items:
    """Return the items of a user."""
    client = work.clients[number]
    raw = [*client.inputs, client.labels]
    return Items(raw, user_id=str(number), train_kwargs={"modality": client.modality})


class Tell(TrainingProcessCallback):
    """Evaluates after each round."""

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Tell that it ended."""
        work.tell(model.pytorch_model.inner)
        return False, Metrics()


turns = itertools.cycle(range(len(work.clients)))
settings, count = work.settings, len(work.clients)
module = Module()
model = PyTorchModel(
    module,
    lambda parameters, lr: work.optimizer(parameters, lr),
    torch.optim.SGD(module.parameters(), 1.0),
)
backend = SimulatedBackend(
    FederatedDataset(user, lambda: next(turns)), None, postprocessors=[WeightByDatapoints()]
)
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=rounds,
        evaluation_frequency=rounds + 1,
        train_cohort_size=count,
        val_cohort_size=0,
    ),
    backend,
    model,
    NNTrainHyperParams(
        local_batch_size=settings["batch_size"],
        local_num_epochs=settings["epochs"],
        local_learning_rate=settings["lr"],
        local_max_grad_norm=settings["max_grad_norm"],
    ),
    None,
    [Tell()],
)
