"""What sites say of their items before the first round, brought within bounds, and what is odd.

The bounds are those of `server.aggregation.bounds`, for the label sums and for the moments of each
feature; besides, the rows of features that a site counts per example are at most KAPPA times as
many as usual. A client with odd features trains on them as standardised with its own moments: other
units, or no scaling where others have some, then make no difference.

Notation: F the shape of what has statistics, as in `common.data.moments`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from common.clients import ClientKey
from common.data.dataset import MultimodalDataset
from common.data.moments import FeatureMoments, Float64Array
from common.messages import ClientDescription
from common.model.calibration import label_sums
from common.task import Task
from server.aggregation.bounds import FEW_ITEMS, KAPPA, REACH, Usual, most_examples

#: How many times the largest variance that is allowed is worth a line.
_WORTH_A_LINE = 25.0


@dataclass(frozen=True)
class Bounded:
    """Clients whose label sums and moments are within the bounds, and a line for each odd one."""

    clients: list[ClientDescription]
    odd: list[str]
    #: Those with odd features, and their moments as they were: what they standardise with.
    units: Mapping[ClientKey, FeatureMoments] = field(default_factory=dict)


def bound_clients(
    clients: Iterable[ClientDescription], items: MultimodalDataset, task: Task
) -> Bounded:
    """Bring clients, at least one, within the bounds; `items` are the coordinator's.

    One that is there already stays as it is, to the bit.
    """
    everyone = list(clients)
    most = most_examples([client.examples for client in everyone])
    labels = None
    if task is Task.regression:
        own = _numbers(label_sums(torch.from_numpy(items.labels), task, 1))
        few = len(items) < FEW_ITEMS
        labels = Usual.of([_numbers(c.label_sums) for c in everyone], None if few else own)
    features = {
        name: _Features.of([c for c in everyone if c.key.modality == name], items, name)
        for name in {client.key.modality: None for client in everyone}
    }
    bounded, odd, units = [], [], {}
    for client in everyone:
        key, share = client.key, min(1.0, most / client.examples)
        if share < 1:
            odd.append(
                f"{key} has {client.examples:,} examples, more than {KAPPA:g} times the median of "
                f"the sites: it counts as {most:,.0f}"
            )
        sums, usual = client.label_sums * share, features[key.modality]
        if labels is not None:
            numbers = _numbers(client.label_sums)
            moved = _bring_within(numbers, labels, share)
            sums = torch.tensor([moved.count, moved.mean, moved.squares], dtype=torch.float64)
            odd += [f"{key}: odd labels: {why}" for why in _why(numbers, labels)]
        for why in _why(client.moments, usual.usual):
            units[key] = client.moments
            odd.append(
                f"{key}: odd features: {why}; are they in the units of the others? It trains on "
                "features standardised with its own mean and deviation"
            )
        moments = usual.bound(client, share)
        bounded.append(replace(client, label_sums=sums, moments=moments))
    return Bounded(bounded, odd, units)


def pool_moments(clients: Iterable[ClientDescription]) -> dict[str, FeatureMoments]:
    """Return modality to the pooled moments of its features."""
    pooled: dict[str, FeatureMoments] = {}
    for client in clients:
        own, name = client.moments, client.key.modality
        pooled[name] = pooled.get(name, FeatureMoments.empty(*own.mean.shape)).merge(own)
    return pooled


@dataclass(frozen=True)
class _Features:
    """What is usual of the features of a modality."""

    usual: Usual
    rows: float  # per example, at most

    @classmethod
    def of(
        cls, clients: Sequence[ClientDescription], items: MultimodalDataset, name: str
    ) -> "_Features":
        present = items.present([name]).nonzero()[0]
        rows = [float(c.moments.count.max(initial=0)) / c.examples for c in clients]
        own = None
        if len(present) >= FEW_ITEMS:
            own = FeatureMoments.of(items.select(present).sequences[name])
            rows = [float(own.count.max(initial=0)) / len(present)]
        usual = Usual.of([client.moments for client in clients], own)
        return cls(usual, KAPPA * float(np.median(rows)))

    def bound(self, client: ClientDescription, share: float) -> FeatureMoments:
        """Return the moments of a client within the bounds, of a share of its items."""
        moments = client.moments
        most = self.rows * client.examples
        excess = np.maximum(moments.count / most, 1.0) if most > 0 else 1.0
        return _bring_within(moments, self.usual, share / excess)


def _numbers(sums: torch.Tensor) -> FeatureMoments:
    """Return label sums of numbers as moments, of shape ()."""
    return FeatureMoments(*sums.numpy())


def _bring_within(
    moments: FeatureMoments, usual: Usual, share: float | Float64Array
) -> FeatureMoments:
    """Return moments within the bounds, of a share of their items."""
    squares = moments.squares / usual.excess(moments.std**2)
    return FeatureMoments(share * moments.count, usual.clamp(moments.mean), share * squares)


def _why(moments: FeatureMoments, usual: Usual) -> Iterator[str]:
    """Say what is most out of bounds, if anything is by much."""
    mean, deviation, centre, reach, excess = (
        np.ravel(values)
        for values in (
            moments.mean,
            moments.std,
            usual.mean,
            usual.reach,
            usual.excess(moments.std**2),
        )
    )
    beyond = np.abs(mean - centre) - reach
    worst = int(beyond.argmax())
    which = f" of feature {worst}" if len(mean) > 1 else ""
    if beyond[worst] > 0:
        low, high = centre[worst] - reach[worst], centre[worst] + reach[worst]
        yield f"the mean{which} is {mean[worst]:.4g}, expected {low:.4g} to {high:.4g}"
        return
    worst = int(excess.argmax())
    which = f" of feature {worst}" if len(mean) > 1 else ""
    if excess[worst] > _WORTH_A_LINE:
        most = np.sqrt(KAPPA) * reach[worst] / REACH
        yield f"the deviation{which} is {deviation[worst]:.4g}, expected at most {most:.4g}"
