"""Flower's side of a round: choose clients and send them the model, merge the updates they return.

An update's way: `aggregate_train` hands the replies to the `UpdateFilter` of `server.acceptance`,
which decodes and checks each one; `server.aggregation` sums what passes in the clients' order and
merges the sum; the server's optimiser steps to the result.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from common.clients import ClientKey
from common.config import Condition, Config, Payload, PrivacyRule, ServerOptimizerConfig
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.messages import ClientDescription, Downlink, Uplink
from common.model.calibration import no_calibration_sums
from common.model.fit_joint import Opinions
from common.model.ha_fedformer import ModelArrays, in_units, join_arrays, split_arrays
from common.protocol import encode_downlink, payload_bytes
from common.seeding import derive_seed, generator
from server.acceptance.examination import (
    Evidence,
    Examination,
    Fits,
    fit_outputs,
    harmed,
    suspects,
)
from server.acceptance.privacy import add_noise
from server.acceptance.update_filter import MOST_WAITING, FilteredUpdates, UpdateFilter
from server.aggregation.bounds import most_examples
from server.aggregation.hierarchy import SummedRound, merge_round, sum_updates
from server.aggregation.rules import check_names
from server.aggregation.server_optimizer import OptimizerState, step
from server.records import RoundRecord
from server.roster.labels import PooledLabels, own_skew
from server.roster.registry import QUERY_SECONDS, Member, Registry

#: What a model, by its state, says of the coordinator's items in some modalities; None: in all.
Look = Callable[[Mapping[str, Tensor], Sequence[str] | None], Opinions]

NONE_COUNTS = (
    "no update of this round counts: together they make the model worse on the coordinator's "
    "items, and they are too many to look for who is to blame"
)


@dataclass(frozen=True)
class StrategyState:
    """What a strategy carries from one round to the next, besides the model."""

    optimizer: OptimizerState
    #: Modality to what its clients last saw of the model, see `common.model.calibration`.
    calibration_sums: Mapping[str, Tensor]
    #: Node to the number of its refused updates.
    faults: Mapping[int, int]
    #: What changes and precisions were usual, see `server.acceptance.screening`.
    medians: Mapping[str, float]
    #: Against clients, see `server.acceptance.examination`.
    evidence: Mapping[ClientKey, Evidence] = field(default_factory=dict)


class HierarchicalAggregation(Strategy):
    """PbEA inside each modality, CmDA across modalities; other rules by configuration.

    `labels` are those of all clients together, `trained` the trained tensors of each encoder and of
    the decoder. `look` returns what a model, by its state, says of the coordinator's items, by
    which updates that do harm are found; None: nobody looks. Clients of the modalities that are
    `well_measured` by these items do not evaluate what they receive. Clients with `units` of their
    own are sent encoders that standardise with these moments.

    Raises
    ------
    UserError
        If the configuration names a rule or a structure that does not exist.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        labels: PooledLabels,
        trained: ModelArrays,
        look: Look | None = None,
        well_measured: Collection[str] = (),
        units: Mapping[ClientKey, FeatureMoments] | None = None,
    ) -> None:
        task = config.dataset.task
        assert task is not None, "the server knows the task of its data before it starts"
        check_names(config.strategy)
        self.config, self.registry, self.labels = config, registry, labels
        self.prior = labels.prior
        self.calibration_sums = {name: no_calibration_sums(task) for name in trained.encoders}
        #: What the model says of the coordinator's items, if somebody looked.
        self.opinions: Opinions | None = None
        self._look, agreement = look, config.strategy.weights == "agreement"
        self._not_evaluating = () if agreement else well_measured
        self._units = units or {}
        share = config.strategy.screening.max_loss_rise
        # The noise of privacy does harm that nobody is to blame for.
        is_private = config.privacy.name is not PrivacyRule.none
        self.examination = None if share is None or is_private else Examination(share)
        #: The last round that was merged.
        self.report: RoundRecord | None = None
        #: Those of the round that is under way; says whose replies there is room for.
        self.updates: FilteredUpdates
        self._task = task
        self._filter = UpdateFilter(config, trained, task, labels.prior)
        self._trained, self._optimizer = trained, OptimizerState()
        self._model: dict[str, Tensor] = {}
        self._sent = ModelArrays({}, {})
        self._skipped: list[str] = []
        self._bytes_down = 0

    def state(self) -> StrategyState:
        """Return what the next round needs."""
        faults, medians = dict(self._filter.faults), dict(self._filter.medians)
        evidence = dict(self.examination.evidence) if self.examination else {}
        sums = dict(self.calibration_sums)
        return StrategyState(self._optimizer, sums, faults, medians, evidence)

    def restore(self, state: StrategyState) -> None:
        """Go on from what `state` returned."""
        self._optimizer = state.optimizer
        self.calibration_sums |= state.calibration_sums
        self._filter.faults.update(state.faults)
        self._filter.medians = dict(state.medians)
        if self.examination:
            self.examination.evidence = dict(state.evidence)
        self.opinions = None

    def summary(self) -> None:
        """Log nothing: the configuration is in the run folder."""

    # What clients are sent ------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return what each chosen client is sent: its own encoder and the decoder.

        Nodes that are new on the grid are asked who they are first; `config` is not used.

        Raises
        ------
        UserError
            If a weight is too large for ``strategy.payload``.
        """
        left_out = self.registry.refresh(grid, QUERY_SECONDS)
        self._model = dict(arrays.to_torch_state_dict())
        sent = self._as_sent()
        # What clients start from, which their changes are measured from.
        trained = join_arrays(self._trained)
        self._sent = split_arrays({name: sent[name].float() for name in sent if name in trained})
        fraction, seed = self.config.strategy.fraction, self.config.seed
        rng = partial(generator, seed, "clients", server_round)
        members, skipped = self.registry.choose(grid, fraction, rng, self._filter.is_banned)
        self._skipped = [*map(str, left_out), *skipped]
        asked: dict[int, list[ClientDescription]] = {}
        for member in members:
            asked.setdefault(member.node, []).append(member.client)
        most = most_examples([each.client.examples for each in self.registry.members.values()])
        self.updates = FilteredUpdates(self._filter, server_round, asked, self._sent, most)
        messages = list(self._messages(server_round, members, split_arrays(sent)))
        self._bytes_down = sum(payload_bytes(message.content) for message in messages)
        return messages

    def _as_sent(self) -> dict[str, Tensor]:
        """Return the model as it travels, with trained weights in ``strategy.payload``."""
        if self.config.strategy.payload is Payload.float32:
            return self._model
        halved = {name: self._model[name].half() for name in join_arrays(self._trained)}
        if not all(array.isfinite().all() for array in halved.values()):
            raise UserError(
                "strategy.payload=float16 cannot hold a weight of the model, which is beyond "
                "65504; use strategy.payload=float32"
            )
        return self._model | halved

    def _messages(
        self, server_round: int, members: Iterable[Member], model: ModelArrays
    ) -> Iterator[Message]:
        scale, local = 1.0, self.config.strategy.local
        if self._holds(local.lr_decay):  # a half cosine over the rounds
            scale = 0.5 * (1 + math.cos(math.pi * (server_round - 1) / self.config.rounds))
        corrects = self._holds(local.logit_adjustment)
        contents: dict[str, RecordDict] = {}
        for member in members:
            key = member.client.key
            encoder, like = model.encoders[key.modality], contents.get(key.modality)
            if units := self._units.get(key):
                encoder, like = in_units(encoder, units), None
            evaluates = key.modality not in self._not_evaluating
            downlink = Downlink(
                key, server_round, encoder, model.decoder, self.prior, scale, corrects, evaluates
            )
            content = encode_downlink(downlink, like)
            if not units:
                contents[key.modality] = content
            yield Message(content, member.node, MessageType.TRAIN, group_id=str(server_round))

    def _holds(self, when: Condition) -> bool:
        """Whether an option is in force."""
        skewed = self.labels.skew > self.config.strategy.skew_threshold
        return when is Condition.always or (when is Condition.skewed and skewed)

    # What becomes of the replies ------------------------------------------------------------------

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Return the model's state with the replies, in any order, merged into it.

        A modality without an update keeps its encoder; `report` says what became of each client.
        """
        kept = _Kept(self.updates.take(replies))
        merged, blamed = self._examined(server_round, self._merge(server_round, kept), kept)
        for key, reason in blamed:
            self.updates.leave_out(key, reason)
        self._model, self._optimizer = merged.model, merged.optimizer
        self.opinions = merged.opinions
        total = merged.summed.total
        self.calibration_sums |= {
            name: modality.calibration_sums for name, modality in total.modalities.items()
        }
        self.report = self._reported(server_round, merged, len(blamed))
        return ArrayRecord(self._model), None

    def _reported(self, server_round: int, merged: "_Merged", harmful: int) -> RoundRecord:
        summed, updates, modalities = merged.summed, self.updates, merged.summed.total.modalities
        return RoundRecord(
            round=server_round,
            clients={name: modality.clients for name, modality in modalities.items()},
            train_loss={name: m.loss / m.examples for name, m in modalities.items()},
            reused=tuple(name for name in self._trained.encoders if name not in modalities),
            rejected=(*sorted([*self._skipped, *updates.rejected]), *merged.few),
            decoder_weights=merged.shares,
            trust=summed.by_client(summed.trust),
            bytes_down=self._bytes_down,
            bytes_up=updates.received,
            clipped=summed.by_client(updates.clipped),
            harmful=harmful,
            refused=updates.refused,
            client_losses=summed.by_client(summed.losses),
            posterior_widths=summed.stds_by_client(),
        )

    def _examined(
        self, server_round: int, merged: "_Merged", kept: "_Kept"
    ) -> tuple["_Merged", list[tuple[ClientKey, str]]]:
        """Return a round without the updates that do harm, whose they are, and why."""
        if self._look is None or self.examination is None:
            return merged, []
        began = self.opinions or self._look(self._model, None)

        def fits_of(merged: _Merged) -> Fits:
            assert merged.opinions is not None
            return fit_outputs(merged.opinions, self.prior, self._task)

        before = fit_outputs(began, self.prior, self._task)
        merge = partial(self._merge, server_round)
        if kept.updates is not None:
            found = suspects(kept.updates, self._sent, self.updates.clipped)
            suspected = {key: times for key, times in found.items() if self._is_like_all(key)}
            return self.examination.examine(
                merged,
                kept.updates,
                merge,
                fits_of,
                before,
                suspected,
                lambda updates, name: fits_of(merge(updates, [name])),
            )
        if harmed(before, fits_of(merged), self.examination.share):
            # Of too many updates to look for who is to blame, none counts.
            merged = merge([])
            self._skipped.append(NONE_COUNTS)
        return merged, []

    def _is_like_all(self, key: ClientKey) -> bool:
        """Whether a client's labels are like those of all: other training hinders without fault."""
        member = self.registry.members.get(key)
        own = own_skew(member.client.label_sums, self.prior, self._task) if member else 0.0
        return own <= self.config.strategy.skew_threshold

    def _merge(
        self, server_round: int, updates: Iterable[Uplink], names: Sequence[str] | None = None
    ) -> "_Merged":
        """Merge updates, one by one, and step; without any the model stays.

        `names` are the modalities whose opinions are wanted; None: all.
        """
        config = self.config
        summed = sum_updates(updates, config.strategy, self.prior, self._task)
        few = summed.without_few(config.runtime.min_clients)
        merged = _Merged(summed, few, self._model, self._optimizer)
        if summed.total.modalities:
            merged = self._step(server_round, merged)
        return replace(merged, opinions=self._look(merged.model, names) if self._look else None)

    def _step(self, server_round: int, merged: "_Merged") -> "_Merged":
        """Step to the merged model."""
        config, privacy, total = self.config.strategy, self.config.privacy, merged.summed.total
        noise = torch.Generator().manual_seed(derive_seed(self.config.seed, "noise", server_round))
        round_ = merge_round(total, self._sent, noise)
        parts = round_.parts
        if privacy.name is PrivacyRule.central:
            counts = {name: modality.clients for name, modality in total.modalities.items()}
            parts = add_noise(parts, counts, privacy)
        target, sent = join_arrays(parts), join_arrays(self._sent)
        if config.payload is not Payload.float32:
            # The merged change from here, so that no rounding of what was sent is lost.
            target = {n: array + (self._model[n] - sent[n]) for n, array in target.items()}
        holds = self._holds(config.server_optimizer.when)
        optimizer = config.server_optimizer if holds else ServerOptimizerConfig()
        scales = join_arrays(round_.change_scales)
        stepped, state = step(self._model, target, self._optimizer, optimizer, scales)
        return replace(
            merged, model=self._model | stepped, optimizer=state, shares=round_.decoder_weights
        )

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


@dataclass(frozen=True)
class _Merged:
    """What some updates make of the model."""

    summed: SummedRound
    few: Sequence[str]
    model: dict[str, Tensor]
    optimizer: OptimizerState
    #: Each layer's shares of the modalities.
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    opinions: Opinions | None = None


class _Kept:
    """Passes updates on, and keeps them while they are not too many."""

    def __init__(self, updates: Iterator[Uplink]) -> None:
        self._passing = updates
        #: All of them once they have passed; None if they are too many.
        self.updates: list[Uplink] | None = []

    def __iter__(self) -> Iterator[Uplink]:
        nbytes = 0
        for uplink in self._passing:
            nbytes += uplink.nbytes
            if nbytes > MOST_WAITING:
                self.updates = None
            elif self.updates is not None:
                self.updates.append(uplink)
            yield uplink
