"""A strategy over a grid in memory, and what its clients answer."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from fake_nodes import Answer, FakeGrid, client, hosting
from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor
from updates import key_of, uplink

from common.clients import ClientKey
from common.config import Config, compose
from common.data.moments import FeatureMoments
from common.messages import Uplink
from common.model.ha_fedformer import (
    HAFedformer,
    ModelArrays,
    ModelSpec,
    build_model,
    split_arrays,
    trained_names,
)
from common.posterior import Form, Gaussian, Posterior
from common.protocol import decode_downlink, encode_uplink
from common.seeding import derive_seed
from common.structures import Structure, decoder_structure, encoder_structure, posterior_form
from common.task import Task
from server.records import RoundRecord
from server.roster.labels import PooledLabels
from server.roster.registry import Registry, Terms
from server.strategy import HierarchicalAggregation

WIDTHS = {"audio": 3, "vision": 5}
#: Node to its clients; the first hosts two, as a simulated node may.
NODES = {11: ("audio-0", "vision-0"), 12: ("audio-1",), 13: ("audio-2",), 14: ("vision-1",)}
PRIOR = torch.tensor([0.3, 1.7], dtype=torch.float64)
LABELS = PooledLabels(PRIOR, skew=0.05)

#: The client that gives trouble, where one does.
BAD = "audio-1"


@cache
def config_with(*overrides: str) -> Config:
    """Compose a small run, of the strategy with the most kinds of arrays unless one is named."""
    sizes = ("model.width=4", "model.heads=2", "model.layers=1", "model.decoder_layers=1")
    return compose(Config, [*sizes, "strategy=paper", *overrides])


def examples_of(key: ClientKey) -> int:
    return derive_seed("examples", str(key)) % 45 + 5


def host(*names: str) -> Answer:
    """Host clients as `client` describes them."""
    keys = [key_of(name) for name in names]
    return hosting(
        *(client(str(k), width=WIDTHS[k.modality], examples=examples_of(k)) for k in keys)
    )


def split_trained(model: HAFedformer) -> ModelArrays:
    return split_arrays({name: model.state_dict()[name] for name in trained_names(model)})


@dataclass
class Federation:
    """A strategy with its grid and the reports that it made."""

    config: Config
    nodes: dict[int, tuple[str, ...]] = field(default_factory=lambda: dict(NODES))
    labels: PooledLabels = LABELS
    well_measured: tuple[str, ...] = ()
    units: Mapping[ClientKey, FeatureMoments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.grid = FakeGrid({node: host(*names) for node, names in self.nodes.items()})
        shapes = {name: (width,) for name, width in WIDTHS.items()}
        spec = ModelSpec(shapes, 1, self.config.dataset.task, self.config.model)
        model = build_model(spec, seed=1)
        self.arrays, self.trained = model.state_dict(), split_trained(model)
        registry = Registry(Terms(shapes, Task.regression, 1))
        self.strategy = HierarchicalAggregation(
            self.config,
            registry,
            self.labels,
            self.trained,
            well_measured=self.well_measured,
            units=self.units,
        )

    def ask(self, server_round: int = 1) -> list[Message]:
        record = ArrayRecord(self.arrays)
        return list(self.strategy.configure_train(server_round, record, ConfigRecord(), self.grid))

    def merge(
        self, replies: Iterable[Message], server_round: int = 1
    ) -> tuple[dict[str, Tensor], RoundRecord]:
        record, metrics = self.strategy.aggregate_train(server_round, replies)
        assert metrics is None and self.strategy.report is not None
        return record.to_torch_state_dict(), self.strategy.report

    def round(
        self, server_round: int = 1, answer: Callable[[Message, Config], Message] | None = None
    ) -> tuple[dict[str, Tensor], RoundRecord]:
        """Ask, and merge what all clients answer."""
        messages = self.ask(server_round)
        return self.merge([(answer or honest)(m, self.config) for m in messages], server_round)


def some_precision(mean: Tensor, form: Form, rng: np.random.Generator) -> Tensor | None:
    if form is Form.identity:
        return None
    if form is Form.diagonal:
        return torch.from_numpy(rng.uniform(0.5, 2, tuple(mean.shape))).float()
    columns = mean[0].numel()
    spread = rng.normal(size=(columns, columns))
    return torch.from_numpy(spread @ spread.T / columns + np.eye(columns)).float()


def update_of(message: Message, config: Config | None = None) -> Uplink:
    """Make the update of an honest client, the same each time it is asked the same."""
    config = config or config_with()
    downlink = decode_downlink(message.content)
    rng = np.random.default_rng(derive_seed("update", str(downlink.key), downlink.round))

    def moved(array: Tensor) -> Tensor:
        return array + torch.from_numpy(rng.normal(scale=0.1, size=tuple(array.shape))).float()

    def posterior(arrays: Mapping[str, Tensor], structure: Structure | None) -> Posterior:
        made = {}
        for name, array in arrays.items():
            if not name.startswith("standardise"):
                mean, form = moved(array), posterior_form(array, structure)
                made[name] = Gaussian(mean, some_precision(mean, form, rng), form)
        return Posterior.of(made)

    y, p = torch.from_numpy(rng.normal(size=(2, 5)))
    examples, client = examples_of(downlink.key), config.client
    return uplink(
        str(downlink.key),
        posterior(downlink.encoder, encoder_structure(config.strategy.encoder)),
        posterior(downlink.decoder, decoder_structure(config.strategy.decoder)),
        round=downlink.round,
        examples=examples,
        train_loss=float(rng.uniform(0.5, 2)),
        calibration_sums=torch.stack([torch.ones_like(y), y, y**2, p, p**2, p * y]).sum(dim=1),
        steps=client.local_epochs * math.ceil(examples / client.batch_size),
    )


def honest(message: Message, config: Config | None = None) -> Message:
    return Message(encode_uplink(update_of(message, config)), reply_to=message)


def key(message: Message) -> ClientKey:
    """Return who was asked."""
    return decode_downlink(message.content).key
