"""What every contestant of `peers.py` does: the same module, items, loss, optimiser and order.

`prepare` takes the clients of a configuration apart into tensors that are ready; a contestant reads
them with `Work.read`, and says with `Work.tell` when a round has ended.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.data.batching import Padded, pad_all
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model

WORK, MARKS = "work.pt", "marks"


@dataclass(frozen=True)
class Client:
    """A client's modality and train items."""

    modality: str
    inputs: Padded
    labels: Tensor

    def batches(self, size: int, epochs: int) -> Iterator[tuple[Padded, Tensor]]:
        """Yield shuffled batches."""
        for _ in range(epochs):
            for index in torch.randperm(len(self.labels)).split(size):
                inputs = Padded(self.inputs.values[index], self.inputs.lengths[index])
                yield inputs, self.labels[index]


@dataclass(frozen=True)
class Work:
    """What is to be trained, and how."""

    folder: Path
    spec: ModelSpec
    clients: list[Client]
    validation: Mapping[str, Padded]
    labels: Tensor
    settings: Mapping[str, Any]

    @classmethod
    def read(cls) -> tuple["Work", int]:
        """Return the work of the folder that the command line names, and how many rounds."""
        torch.set_num_threads(1)
        folder = Path(sys.argv[1])
        return cls(folder, **torch.load(folder / WORK, weights_only=False)), int(sys.argv[2])

    def model(self) -> HAFedformer:
        """Return the model that all start from."""
        return build_model(self.spec, seed=0)

    def optimizer(self, parameters: Any, lr: float | None = None) -> torch.optim.Optimizer:
        """Return a client's optimiser."""
        lr, decay = lr or self.settings["lr"], self.settings["weight_decay"]
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)

    def loss(self, model: HAFedformer, modality: str, inputs: Padded, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        return nn.functional.l1_loss(model(modality, inputs)[:, 0], labels)

    def train(self, model: HAFedformer, client: Client) -> None:
        """Train a model in place for a round, with nothing but PyTorch."""
        model.train()
        parameters = [p for name, p in model.named_parameters() if self.is_of(name, client)]
        optimizer = self.optimizer(parameters)
        for inputs, labels in client.batches(self.settings["batch_size"], self.settings["epochs"]):
            optimizer.zero_grad()
            self.loss(model, client.modality, inputs, labels).backward()
            nn.utils.clip_grad_norm_(parameters, self.settings["max_grad_norm"])
            optimizer.step()

    @staticmethod
    def is_of(name: str, client: Client) -> bool:
        """Whether a parameter is one that the client trains: of its encoder or of the decoder."""
        return name.startswith((f"encoders.{client.modality}.", "decoder."))

    @torch.inference_mode()
    def evaluate(self, model: HAFedformer) -> float:
        """Return the mean absolute error of all modalities' mean on the validation items."""
        model.eval()
        outputs = []
        for name, padded in self.validation.items():
            parts = zip(padded.values.split(128), padded.lengths.split(128), strict=True)
            outputs.append(torch.cat([model(name, Padded(*part))[:, 0] for part in parts]))
        return float((torch.stack(outputs).mean(0) - self.labels).abs().mean())

    def tell(self, model: HAFedformer) -> None:
        """Evaluate, and say that a round has ended."""
        with (self.folder / MARKS).open("a") as file:
            file.write(f"{self.evaluate(model)}\n")


def prepare(folder: Path, overrides: list[str]) -> None:
    """Write the work that a configuration of ours describes."""
    from client.node import standardised
    from common.config import Config, compose
    from common.data.federation import client_data_of, load_federation
    from common.model.calibration import label_sums, prior_of, standardise
    from common.task import Task

    config = compose(Config, overrides)
    data = load_federation(config)
    prior = prior_of(label_sums(torch.from_numpy(data.validation.labels), data.task, 1), data.task)
    clients = []
    for key in data.clients:
        own = standardised(client_data_of(data, key, config), prior)
        inputs = pad_all(own.sequences.select(own.train))
        clients.append(Client(key.modality, inputs, torch.from_numpy(own.labels[own.train])))
    held = data.validation
    work = {
        "spec": ModelSpec(data.shapes, 1, Task.regression, config.model),
        "clients": clients,
        "validation": {name: pad_all(items) for name, items in held.sequences.items()},
        "labels": torch.from_numpy(standardise(held.labels, prior, data.task)),
        "settings": {
            "lr": config.client.lr,
            "weight_decay": config.client.weight_decay,
            "batch_size": config.client.batch_size,
            "epochs": config.client.local_epochs,
            "max_grad_norm": config.client.max_grad_norm,
        },
    }
    torch.save(work, folder / WORK)
