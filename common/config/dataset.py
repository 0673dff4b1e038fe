"""The groups ``dataset`` and ``partition``: the data, and which client gets which items."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omegaconf import MISSING

from common.config.ranges import at_least, positive, share
from common.task import Task

#: Whose statistics centre and scale a feature.
Standardisation = StrEnum("Standardisation", ["pooled", "client"])


@dataclass
class DatasetConfig:
    """What every dataset has; a kind adds its own settings."""

    name: str = MISSING
    task: Task | None = Task.regression  # None: as the shards say
    modalities: list[str] = field(default_factory=list)
    max_seq_len: int | None = positive(50)
    validation_fraction: float = share(0.1)
    test_fraction: float = share(0.2)
    standardisation: Standardisation = Standardisation.pooled
    # Edges of the bins in which numbers are counted to see how clients' labels differ: Acc-7's.
    label_bins: list[float] = field(default_factory=lambda: [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    # For experiments: this many clients of each modality get the labels of other items of theirs.
    permuted_clients: int = at_least(0, 0)


@dataclass
class SyntheticConfig(DatasetConfig):
    """The embedded dataset; see `common.data.synthetic`."""

    name: str = "synthetic"
    num_items: int = positive(2400)
    num_speakers: int = positive(60)
    noise: float = at_least(0, 1.0)


@dataclass
class NpzConfig(DatasetConfig):
    """Arrays in ``.npz`` files; see `common.data.formats.npz`."""

    name: str = "npz"
    path: Any = MISSING  # one path or a list of paths
    test_path: str | None = None
    group: str | None = None
    context: int = at_least(0, 0)
    tabular: list[str] = field(default_factory=list)


@dataclass
class ShardsConfig(DatasetConfig):
    """A folder that `utmp-prepare` wrote; see `common.data.shards`."""

    name: str = "shards"
    path: str = MISSING
    task: Task | None = None
    max_seq_len: int | None = positive(None)


#: Which client gets which items; see `common.data.partition`.
PartitionRule = StrEnum("PartitionRule", ["groups", "iid", "dirichlet", "natural", "size"])


#: How sizes grow from the first client of a modality to its last.
SizeLaw = StrEnum("SizeLaw", ["linear", "square", "exponential"])


@dataclass
class PartitionConfig:
    """What every rule has; some add settings of their own."""

    name: PartitionRule = MISSING
    min_items: int = at_least(0, 1)


@dataclass
class DirichletConfig(PartitionConfig):
    """Label skew."""

    name: PartitionRule = PartitionRule.dirichlet
    alpha: float = positive(0.5)
    bins: int = positive(5)


@dataclass
class SizeConfig(PartitionConfig):
    """Unequal sizes."""

    name: PartitionRule = PartitionRule.size
    law: SizeLaw = SizeLaw.linear


#: Choices of a group that have settings of their own, as they are given.
KINDS: dict[str, type] = {
    "dataset=synthetic": SyntheticConfig,
    "dataset=npz": NpzConfig,
    "dataset=shards": ShardsConfig,
    "partition=dirichlet": DirichletConfig,
    "partition=size": SizeConfig,
}
