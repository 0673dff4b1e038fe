"""The settings of the commands around a run: preparing, reporting, credentials, Docker Compose.

``conf/NAME.yaml`` holds the values of ``utmp-NAME``.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from common.config.dataset import PartitionConfig
from common.config.ranges import Settings, at_least, between, count, positive, ranged, share
from common.config.schema import check_held_back
from common.errors import UserError


class Labels(StrEnum):
    """Which labels are taken: those of a kind, or the six emotions."""

    regression = "regression"
    classification = "classification"
    multilabel = "multilabel"
    emotion = "emotion"


class Split(StrEnum):
    """Who decides which items are for training, validation and test."""

    auto = "auto"
    source = "source"
    random = "random"
    none = "none"


class Precision(StrEnum):
    """How features are stored."""

    auto = "auto"
    float16 = "float16"
    float32 = "float32"


@dataclass
class PrepareConfig(Settings):
    """Everything that decides a preparation."""

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
        """Raise `UserError` if nothing is left to train on."""
        check_held_back(self)


@dataclass
class ReportConfig(Settings):
    """What is reported, and against what."""

    file: ClassVar[str] = "report"

    runs: Any = None
    out: str = "report"
    overwrite: bool = False
    baseline: str | None = "fedavg"
    metrics: list[str] = field(default_factory=list)
    details: int = ranged(8, "a number of runs, 0 or more", lambda value: value >= 0)

    @property
    def places(self) -> list[str]:
        """Where to look for runs: folders and globs."""
        given = self.runs if isinstance(self.runs, list) else [self.runs]
        return [str(place) for place in given]

    def check(self) -> None:
        """Raise `UserError` if a required setting is missing or empty."""
        if self.runs is None or self.runs == []:
            raise UserError(
                "runs is required; give it as runs=…: a folder, a glob, or a list of them"
            )
        if isinstance(self.runs, dict) or not all(place.strip() for place in self.places):
            raise UserError(f"runs={self.runs}: expected a folder, a glob, or a list of them")
        if not self.out.strip():
            raise UserError("out is required; give it as out=…")


class Renew(StrEnum):
    """What is replaced though it is there."""

    none = "none"
    server = "server"


@dataclass
class CredentialsConfig(Settings):
    """Who gets credentials, for which names, and for how long."""

    file: ClassVar[str] = "credentials"

    out: str | None = None
    hosts: Any = None
    clients: dict[str, int] = count({})  # noqa: RUF009
    days: int = between(1, 36500, 365)
    ca_days: int = between(1, 36500, 3650)
    renew: Renew = Renew.none

    @property
    def host_names(self) -> list[str]:
        """The hosts that were given, as text; empty if none were."""
        given = self.hosts if isinstance(self.hosts, list) else [self.hosts]
        return [] if self.hosts is None else ["" if host is None else str(host) for host in given]

    def check(self) -> None:
        """Raise `UserError` if a required setting is missing or the hosts are no names."""
        if self.out is None or not self.out.strip():
            raise UserError("out is required; give it as out=…: the folder of all credentials")
        names = self.host_names
        nothing = self.hosts is not None and not names
        if nothing or isinstance(self.hosts, dict) or not all(name.strip() for name in names):
            raise UserError(
                f"hosts={self.hosts}: expected the names and addresses by which the coordinator is "
                "reached, as in 'hosts=[superlink.example.org,10.0.0.5]'"
            )


@dataclass
class ComposeConfig(Settings):
    """Which clients run on this machine, and on what."""

    file: ClassVar[str] = "compose"

    clients: dict[str, int | None] = at_least(0, {"default": None})  # noqa: RUF009
    modalities: list[str] = field(default_factory=list)
    data: str | None = None
    gpu: bool = False

    def check(self) -> None:
        """Raise `UserError` if the folder of shards has no name."""
        if self.data is not None and not self.data.strip():
            raise UserError("data is empty: expected the folder of shards that utmp-prepare wrote")
