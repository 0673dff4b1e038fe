"""The settings of the group ``partition``, which `utmp-train` and `utmp-prepare` share."""

from dataclasses import dataclass
from enum import StrEnum

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


class PartitionRule(StrEnum):
    """Who gets which items; see `common.data.partition`."""

    groups = "groups"
    iid = "iid"
    dirichlet = "dirichlet"
    natural = "natural"
    size = "size"


class SizeLaw(StrEnum):
    """How sizes grow from the first client of a modality to its last."""

    linear = "linear"
    square = "square"
    exponential = "exponential"


@dataclass
class PartitionConfig:
    """What every rule has; some add settings of their own."""

    name: PartitionRule = MISSING
    min_items: int = 1


@dataclass
class DirichletConfig(PartitionConfig):
    """Label skew."""

    name: PartitionRule = PartitionRule.dirichlet
    alpha: float = 0.5
    bins: int = 5


@dataclass
class SizeConfig(PartitionConfig):
    """Unequal sizes."""

    name: PartitionRule = PartitionRule.size
    law: SizeLaw = SizeLaw.linear


def register_partition_schema() -> None:
    """Put the schema into Hydra's ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="partition_schema", node=PartitionConfig)
    store.store(name="dirichlet_schema", node=DirichletConfig)
    store.store(name="size_schema", node=SizeConfig)


register_partition_schema()
