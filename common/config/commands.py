"""The settings of the commands around a run; ``conf/NAME.yaml`` holds those of ``utmp-NAME``."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from common.config.dataset import PartitionConfig
from common.config.ranges import (
    Settings,
    at_least,
    between,
    count,
    positive,
    ranged,
    required,
    share,
)
from common.config.schema import check_held_back
from common.errors import UserError


class Labels(StrEnum):
    """The labels to predict: those of a task, or the six emotions."""

    regression = "regression"
    classification = "classification"
    multilabel = "multilabel"
    emotion = "emotion"


#: How items are divided into training, validation and test.
Split = StrEnum("Split", ["auto", "source", "random", "none"])


#: How features are stored.
Precision = StrEnum("Precision", ["auto", "float16", "float32"])


@dataclass
class PrepareConfig(Settings):
    """Settings of `utmp-prepare`."""

    file: ClassVar[str] = "prepare"

    path: Any = None
    out: str | None = None
    format: str = "auto"
    describe: bool = False
    overwrite: bool = False
    seed: int = 1234
    task: Labels = Labels.regression
    modalities: list[str] = field(default_factory=list)
    max_seq_len: int | None = positive(50)
    dtype: Precision = Precision.auto
    group: str | None = None
    context: int = at_least(0, 0)
    tabular: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    arrays: dict[str, str] = field(default_factory=dict)
    split: Split = Split.auto
    validation_fraction: float = share(0.1)
    test_fraction: float = share(0.2)
    clients: dict[str, int | None] = at_least(0, {"default": None})  # noqa: RUF009
    partition: PartitionConfig = field(default_factory=PartitionConfig)

    def check(self) -> None:
        """Refuse a split that leaves nothing to train on."""
        check_held_back(self)


@dataclass
class ReportConfig(Settings):
    """Settings of `utmp-report`."""

    file: ClassVar[str] = "report"

    runs: Any = required(None, "a folder, a glob, or a list of them")  # noqa: RUF009
    out: str = required("report")
    overwrite: bool = False
    baseline: str | None = "fedavg"
    metrics: list[str] = field(default_factory=list)
    details: int = ranged(8, "a number of runs, 0 or more", lambda value: value >= 0)

    @property
    def places(self) -> list[str]:
        """Folders and globs in which to look for runs."""
        given = self.runs if isinstance(self.runs, list) else [self.runs]
        return [str(place) for place in given]

    def check(self) -> None:
        """Refuse runs that are no names."""
        if isinstance(self.runs, dict) or not all(place.strip() for place in self.places):
            raise UserError(f"runs={self.runs}: expected a folder, a glob, or a list of them")


#: Credentials that are replaced although they exist.
Renew = StrEnum("Renew", ["none", "server"])


@dataclass
class CredentialsConfig(Settings):
    """Settings of `utmp-credentials`."""

    file: ClassVar[str] = "credentials"

    out: str | None = required(None, "the folder of all credentials")
    hosts: Any = None
    clients: dict[str, int] = count({})  # noqa: RUF009
    days: int = between(1, 36500, 365)
    ca_days: int = between(1, 36500, 3650)
    renew: Renew = Renew.none

    @property
    def host_names(self) -> list[str]:
        """The given hosts as text."""
        given = self.hosts if isinstance(self.hosts, list) else [self.hosts]
        return [] if self.hosts is None else ["" if host is None else str(host) for host in given]

    def check(self) -> None:
        """Refuse hosts that are no names."""
        names = self.host_names
        nothing = self.hosts is not None and not names
        if nothing or isinstance(self.hosts, dict) or not all(name.strip() for name in names):
            raise UserError(
                f"hosts={self.hosts}: expected the names and addresses by which the coordinator is "
                "reached, as in 'hosts=[superlink.example.org,10.0.0.5]'"
            )


@dataclass
class ComposeConfig(Settings):
    """Settings of `utmp-compose`: the clients on this machine."""

    file: ClassVar[str] = "compose"

    clients: dict[str, int | None] = at_least(0, {"default": None})  # noqa: RUF009
    modalities: list[str] = field(default_factory=list)
    data: str | None = None
    gpu: bool = False

    def check(self) -> None:
        """Refuse an empty name of the folder of shards."""
        if self.data is not None and not self.data.strip():
            raise UserError("data is empty: expected the folder of shards that utmp-prepare wrote")
