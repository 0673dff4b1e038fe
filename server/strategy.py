"""Flower's side of the aggregation: choose clients, decode, check, sum, encode.

All mathematics is in `server.aggregation`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from common.clients import ClientKey
from common.config import ClientWeights, Config, Payload, ServerOptimizerConfig, When
from common.errors import UserError
from common.messages import ClientDescription, Downlink, Uplink, no_numbers
from common.model.evidence import no_evidence
from common.model.ha_fedformer import Parts, join_arrays, split_arrays
from common.posterior import decoder_structure, encoder_structure
from common.protocol import encode_downlink, payload_bytes
from common.seeding import derive_seed, generator
from server.acceptance.gate import Gate
from server.acceptance.held import Updates
from server.acceptance.privacy import privacy_spent
from server.aggregation import server_optimizer
from server.aggregation.client_weights import client_weight, trust_clients
from server.aggregation.hierarchy import RoundSum, merge_round
from server.aggregation.widths import first_clients, posterior_widths
from server.run.labels import PooledLabels
from server.run.registry import QUERY_SECONDS, Member, Registry
from server.run.round_report import RoundReport


@dataclass(frozen=True)
class StrategyState:
    """What a strategy carries from one round to the next, beside the model.

    Attributes
    ----------
    moments
        Of the server's optimiser.
    evidence
        Modality to what its clients last saw of the model, see `common.model.evidence.evidence`.
    faults
        Node to the number of its refused updates.
    """

    moments: server_optimizer.Moments
    evidence: Mapping[str, Tensor]
    faults: Mapping[int, int]


@dataclass
class _Asked:
    """The clients asked in the current round, by the node and the order of asking."""

    faults: list[str] = field(default_factory=list)
    keys: dict[int, list[ClientKey]] = field(default_factory=dict)
    clients: dict[ClientKey, ClientDescription] = field(default_factory=dict)
    bytes_down: int = 0
    refused: int = 0


class HierarchicalAggregation(Strategy):
    """PbEA inside each modality, CmDA across modalities; FedAvg by configuration.

    Parameters
    ----------
    config
        The run's configuration.
    registry
        Who takes part.
    labels
        What the clients' labels are together; its prior is sent to every client.
    trained
        Names of the trained tensors of each encoder and of the decoder, as in the model.
    tell
        Takes the report of each round.

    Attributes
    ----------
    busy
        Nodes that are still at a former round; they are asked only where nobody else is there.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        labels: PooledLabels,
        trained: Parts,
        tell: Callable[[RoundReport], None],
    ) -> None:
        self.config = config
        self.registry = registry
        self.labels = labels
        self.prior = labels.prior
        self.tell = tell
        task = config.dataset.task
        assert task is not None, "the server knows the task of its data before it starts"
        self.evidence = {name: no_evidence(task) for name in trained.encoders}
        self._task = task
        self._trained = trained
        self._asked = _Asked()
        self._arrays: dict[str, Tensor] = {}
        self._received = Parts({}, {})
        self._moments = server_optimizer.Moments()
        self.busy: frozenset[int] = frozenset()
        self.faults: Counter[int] = Counter()
        self._gate = Gate(config, trained, task, self.prior, self.faults)

    def state(self) -> StrategyState:
        """Return what the next round needs."""
        return StrategyState(self._moments, dict(self.evidence), dict(self.faults))

    def restore(self, state: StrategyState) -> None:
        """Go on from what `state` returned."""
        self._moments = state.moments
        self.evidence |= state.evidence
        self.faults.update(state.faults)

    def summary(self) -> None:
        """Log nothing: the configuration is in the run folder."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Do as `ask`, for Flower's own loop over rounds."""
        return self.ask(server_round, from_record(arrays), grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Do as `merge`, for Flower's own loop over rounds."""
        return to_record(self.merge(server_round, replies)), None

    def ask(self, server_round: int, arrays: Mapping[str, Tensor], grid: Grid) -> list[Message]:
        """Return what each chosen client is sent: its own encoder and the decoder.

        Parameters
        ----------
        server_round
            From 1.
        arrays
            The model's state.
        grid
            Reaches the nodes; new ones are asked who they are.

        Raises
        ------
        UserError
            If a weight is too large for ``strategy.payload``.
        """
        faults = self.registry.refresh(grid, self._trained.encoders, QUERY_SECONDS)
        self._arrays = {name: array.clone() for name, array in arrays.items()}
        sent = self._as_sent()
        # What clients start from, which their changes are measured from.
        self._received = split_arrays({name: array.float() for name, array in sent.items()})
        parts = split_arrays(sent)
        self._asked = _Asked(faults)
        messages = []
        local = self.config.strategy.local
        shares = self.labels.shares if self._holds(local.logit_adjustment) else no_numbers()
        chosen = self._choose(server_round)
        free = [member for member in chosen if member.node not in self.busy]
        self._asked.faults += [
            f"{member.client.key}: not asked, it has not answered a former round yet"
            for member in chosen
            if free and member.node in self.busy
        ]
        contents: dict[str, RecordDict] = {}
        for member in free or chosen:
            key = member.client.key
            self._asked.clients[key] = member.client
            downlink = Downlink(
                key,
                server_round,
                parts.encoders[key.modality],
                parts.decoder,
                self.prior,
                self._lr_scale(server_round),
                shares,
            )
            content = encode_downlink(downlink, contents.get(key.modality))
            contents[key.modality] = content
            messages.append(
                Message(content, member.node, MessageType.TRAIN, group_id=str(server_round))
            )
            self._asked.keys.setdefault(member.node, []).append(key)
            self._asked.bytes_down += payload_bytes(content)
        return messages

    def _as_sent(self) -> dict[str, Tensor]:
        """Return the model as it travels, with trained weights in ``strategy.payload``.

        Raises
        ------
        UserError
            If a weight is too large for it.
        """
        if self.config.strategy.payload is Payload.float32:
            return dict(self._arrays)
        halved = {name: self._arrays[name].half() for name in join_arrays(self._trained)}
        if not all(array.isfinite().all() for array in halved.values()):
            raise UserError(
                "strategy.payload=float16 cannot hold a weight of the model, which is beyond "
                "65504; use strategy.payload=float32"
            )
        return self._arrays | halved

    def _holds(self, when: When) -> bool:
        """Whether an option is in force."""
        skewed = self.labels.skew > self.config.strategy.skew_threshold
        return when is When.always or (when is When.skewed and skewed)

    def _lr_scale(self, server_round: int) -> float:
        """Return the factor on the local rates: a half cosine over the rounds, or 1."""
        if not self._holds(self.config.strategy.local.lr_decay):
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (server_round - 1) / self.config.rounds))

    def _choose(self, server_round: int) -> list[Member]:
        """Sample ``strategy.fraction`` of each modality's clients, at least one of those left."""
        chosen: list[Member] = []
        for name, everyone in self.registry.by_modality().items():
            members = [member for member in everyone if not self._gate.closed(member.node)]
            if not members:
                continue
            size = max(1, round(self.config.strategy.fraction * len(members)))
            rng = generator(self.config.seed, "clients", server_round, name)
            picked = np.sort(rng.choice(len(members), size=size, replace=False))
            chosen += [members[index] for index in picked]
        return chosen

    def merge(self, server_round: int, replies: Iterable[Message]) -> dict[str, Tensor]:
        """Return the model's state with the replies merged into it.

        Parameters
        ----------
        server_round
            The one that was asked for last.
        replies
            In any order; a modality without one keeps its encoder.
        """
        updates, rejected, bytes_up = self._accept(server_round, replies)
        updates, few = self._enough(updates)
        rejected += few
        trusted = self._trust(updates.heads)
        total = RoundSum(self.config.strategy)
        for uplink in updates:
            trust = trusted.get(str(uplink.key), 1.0)
            weight = client_weight(uplink, self.config.strategy.weights, trust)
            total = total.add(uplink, weight, trust)
        modalities = self._trained.encoders
        shares = self._merge_and_step(server_round, total) if total.modalities else {}
        for name, modality in total.modalities.items():
            if modality.evidence is not None:
                self.evidence[name] = modality.evidence
        self.tell(
            RoundReport(
                server_round,
                {name: modality.clients for name, modality in total.modalities.items()},
                {name: m.loss / m.examples for name, m in total.modalities.items()},
                tuple(name for name in modalities if name not in total.modalities),
                tuple(rejected),
                shares,
                trusted,
                self._asked.bytes_down,
                bytes_up,
                self._asked.refused,
                {str(head.key): head.train_loss for head in updates.heads},
                self._widths(updates),
            )
        )
        return dict(self._arrays)

    def _widths(self, updates: Updates) -> dict[str, dict[str, float]]:
        """Return the widths of posteriors, where clients have any."""
        strategy = self.config.strategy
        if not (encoder_structure(strategy.encoder) or decoder_structure(strategy.decoder)):
            return {}
        return posterior_widths(map(updates.read, first_clients(updates.heads)))

    def _enough(self, updates: Updates) -> tuple[Updates, list[str]]:
        """Leave out modalities with too few updates; return a line for each."""
        least = self.config.runtime.min_clients
        found = Counter(head.key.modality for head in updates.heads)
        heads = [head for head in updates.heads if found[head.key.modality] >= least]
        return replace(updates, heads=heads), [
            f"{name}: {count} updates, and runtime.min_clients={least}"
            for name, count in sorted(found.items())
            if count < least
        ]

    def _merge_and_step(
        self, server_round: int, total: RoundSum
    ) -> Mapping[str, Mapping[str, float]]:
        """Step to the merged model; return each layer's shares of the modalities."""
        config = self.config.strategy
        noise = torch.Generator().manual_seed(derive_seed(self.config.seed, "noise", server_round))
        merged = merge_round(total, self._received, noise)
        optimizer = config.server_optimizer
        stepped, self._moments = server_optimizer.step(
            self._arrays,
            self._from_here(join_arrays(merged.parts)),
            self._moments,
            optimizer if self._holds(optimizer.when) else ServerOptimizerConfig(),
            join_arrays(merged.change_scales),
        )
        self._arrays |= stepped
        return merged.decoder_weights

    def _from_here(self, merged: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the merged change from here, so that no rounding of ``strategy.payload`` is lost."""
        if self.config.strategy.payload is Payload.float32:
            return merged
        received = join_arrays(self._received)
        return {
            name: array + (self._arrays[name] - received[name]) for name, array in merged.items()
        }

    def _trust(self, uplinks: Sequence[Uplink]) -> dict[str, float]:
        """Return the trust in each client's labels, where clients are weighted by it."""
        if self.config.strategy.weights is not ClientWeights.agreement:
            return {}
        by_modality: dict[str, list[Uplink]] = {}
        for uplink in uplinks:
            by_modality.setdefault(uplink.key.modality, []).append(uplink)
        return {
            str(uplink.key): trusted
            for clients in by_modality.values()
            for uplink, trusted in zip(
                clients, trust_clients(clients, self.prior, self._task), strict=True
            )
        }

    def _accept(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[Updates, list[str], int]:
        """Return the updates that pass, one line for each that does not, and the bytes received."""
        asked = self._asked
        found = self._gate.accept(server_round, replies, asked.keys, asked.clients, self._received)
        asked.refused = found.refused
        return found.updates, sorted([*asked.faults, *found.rejected]), found.received

    def privacy_spent(self, rounds: int) -> dict[str, Any] | None:
        """Say what so many rounds tell of a client, see `server.acceptance.privacy`."""
        return privacy_spent(self.config, rounds)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing: clients evaluate what they receive before they train it."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing; see `configure_evaluate`."""
        return None


def to_record(arrays: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors as Flower's record."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in arrays.items()})


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Return Flower's record as tensors."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}
