"""The settings of the commands around a run; ``conf/NAME.yaml`` holds those of ``utmp-NAME``.

Those of the commands that use a trained model are in ``conf/trained/``: that folder has no groups,
so `model` and `dataset` can be settings there.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from common.config.extract import ExtractConfig
from common.config.ranges import Settings, at_least, between, path_setting, positive, ranged, share
from common.config.schema import Config, PartitionConfig, Split, check_held_back, label_columns
from common.errors import UserError

#: The labels to predict: those of a task, or the six emotions.
Labels = StrEnum("Labels", ["regression", "classification", "multilabel", "emotion"])

#: How features are stored.
Precision = StrEnum("Precision", ["auto", "float16", "float32"])


def _as_list(given: Any) -> list[str]:
    """Return one value or a list of them as text; null is blank."""
    values = given if isinstance(given, list) else [given]
    return ["" if value is None else str(value) for value in values]


@dataclass
class PrepareConfig(Settings):
    """Settings of `utmp-prepare`."""

    path: Any = path_setting(None)  # noqa: RUF009
    out: str | None = path_setting(None)
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
    label: str | None = None
    labels: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    arrays: dict[str, str] = path_setting({})  # noqa: RUF009
    split: Split = Split.auto
    validation_fraction: float = share(0.1)
    test_fraction: float = share(0.2)
    clients: dict[str, int | None] = at_least(0, {"default": None})  # noqa: RUF009
    partition: PartitionConfig = field(default_factory=PartitionConfig)

    def check(self) -> None:
        """Refuse a split that leaves nothing to train on, and columns of labels named twice."""
        check_held_back(self)
        label_columns(self)


@dataclass
class ReportConfig(Settings):
    """Settings of `utmp-report`."""

    runs: Any = path_setting(None, "a folder, a glob, or a list of them")  # noqa: RUF009
    out: str = path_setting("report", "")
    overwrite: bool = False
    baseline: str | None = "fedavg"
    metrics: list[str] = field(default_factory=list)
    details: int = at_least(0, 8)

    @property
    def places(self) -> list[str]:
        """Folders and globs in which to look for runs."""
        return _as_list(self.runs)

    def check(self) -> None:
        """Refuse runs that are no names."""
        if isinstance(self.runs, dict) or not all(place.strip() for place in self.places):
            raise UserError(f"runs={self.runs}: expected a folder, a glob, or a list of them")


#: Credentials that are replaced although they exist.
Renew = StrEnum("Renew", ["none", "server"])


@dataclass
class CredentialsConfig(Settings):
    """Settings of `utmp-credentials`."""

    out: str | None = path_setting(None, "the folder of all credentials")
    hosts: Any = None
    clients: dict[str, int] = at_least(1, {})  # noqa: RUF009
    days: int = between(1, 36500, 365)
    ca_days: int = between(1, 36500, 3650)
    renew: Renew = Renew.none

    @property
    def host_names(self) -> list[str]:
        """The given hosts as text."""
        return [] if self.hosts is None else _as_list(self.hosts)

    def check(self) -> None:
        """Refuse hosts that are no names."""
        named = all(name.strip() for name in self.host_names) and self.hosts not in ([], {})
        if isinstance(self.hosts, dict) or not named:
            raise UserError(
                f"hosts={self.hosts}: expected the names and addresses by which the coordinator is "
                "reached, as in 'hosts=[superlink.example.org,10.0.0.5]'"
            )


@dataclass
class ComposeConfig(Settings):
    """Settings of `utmp-compose`: the clients on this machine."""

    clients: dict[str, int | None] = at_least(0, {"default": None})  # noqa: RUF009
    modalities: list[str] = field(default_factory=list)
    data: str | None = path_setting(None)
    gpu: bool = False

    def check(self) -> None:
        """Refuse an empty name of the folder of shards."""
        if self.data is not None and not self.data.strip():
            raise UserError("data is empty: expected the folder of shards that utmp-prepare wrote")


#: Formats of a file of predictions, by its suffix.
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


@dataclass
class TrainedSettings(Settings):
    """What these commands share."""

    folder: ClassVar[str] = "conf.trained"

    model: str | None = path_setting(None, "a run folder, a model file or a checkpoint")


@dataclass
class ReadingSettings(TrainedSettings):
    """What the commands share that read items: which, and how."""

    overwrite: bool = False
    format: str = "auto"
    modalities: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    device: str = "auto"
    max_seq_len: int | None = positive(None)
    group: str | None = None
    context: int | None = at_least(0, None)
    arrays: dict[str, str] = path_setting({})  # noqa: RUF009


@dataclass
class PredictConfig(ReadingSettings):
    """Settings of `utmp-predict`."""

    input: Any = path_setting(None, "a shard, or a file of any format")  # noqa: RUF009
    out: str = path_setting("predictions.csv")
    batch_size: int = positive(256)
    threads: int = positive(1)

    def check(self) -> None:
        """Refuse output of an unknown format."""
        if Path(self.out).suffix not in SUFFIXES:
            raise UserError(f"out={self.out}: expected a file that ends in {', '.join(SUFFIXES)}")


#: Which of a run's held-out items to evaluate.
Side = StrEnum("Side", ["validation", "test"])


@dataclass
class EvaluateConfig(ReadingSettings):
    """Settings of `utmp-evaluate`."""

    dataset: Any = path_setting(None)  # noqa: RUF009
    side: Side = Side.test
    out: str | None = path_setting(None)
    emotions: bool = False

    def check(self) -> None:
        """Refuse settings of a dataset without a dataset."""
        default = EvaluateConfig()
        reading = ("format", "emotions", "labels", "group", "context", "arrays")
        changed = [name for name in reading if getattr(self, name) != getattr(default, name)]
        if self.dataset is None and changed:
            raise UserError(
                f"{changed[0]} says how a dataset is read; give that too, as dataset=… (the run's "
                "own items are read as the run read them)"
            )
        if self.out is not None and not self.out.endswith(".json"):
            raise UserError(f"out={self.out}: expected a file that ends in .json")


@dataclass
class ExportConfig(TrainedSettings):
    """Settings of `utmp-export`."""

    out: str = path_setting("onnx", "")
    overwrite: bool = False
    subsets: list[str] = field(default_factory=list)


@dataclass
class ServeConfig(TrainedSettings):
    """Settings of `utmp-serve`."""

    labels: list[str] = field(default_factory=list)
    examples: str = path_setting("auto")
    device: str = "auto"
    threads: int = at_least(1, 1)
    host: str = "127.0.0.1"
    port: int = between(0, 65535, 8100)
    allowed_hosts: list[str] = field(default_factory=list)
    token: str | None = None
    token_file: str | None = path_setting(None)
    ssl_cert: str | None = path_setting(None)
    ssl_key: str | None = path_setting(None)
    max_body_mb: float = ranged(
        16.0, "a number above 0, up to 1024", lambda value: 0 < value <= 1024
    )
    max_items: int = at_least(1, 1000)
    max_steps: int = at_least(1, 1000)
    max_batch: int = at_least(1, 256)
    max_wait_ms: float = between(0, 1000, 5.0)
    max_queue: int = at_least(1, 4096)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def check(self) -> None:
        """Refuse hosts that are no names, and settings that do not fit together."""
        if not self.host.strip():
            raise UserError(
                "host is required; 127.0.0.1 answers this machine only, 0.0.0.0 everyone"
            )
        if self.token is not None and self.token_file is not None:
            raise UserError("token and token_file are both given; give one of the two")
        check_token(self.token, "token")
        for name in self.allowed_hosts:
            if not re.fullmatch(r"[\w.-]+", name):
                raise UserError(
                    f"allowed_hosts={self.allowed_hosts}: expected names, as in "
                    "'allowed_hosts=[models.example.org]', without scheme and port"
                )
        if (self.ssl_cert is None) != (self.ssl_key is None):
            raise UserError("ssl_cert and ssl_key belong together; give both, or neither")
        if self.max_queue < self.max_items:
            raise UserError(
                f"max_queue={self.max_queue}: expected max_items={self.max_items} at least, or "
                "such a request could never be answered"
            )


def check_token(token: str | None, source: str) -> None:
    """Refuse a token that is empty or not visible ASCII; the message does not show it."""
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"{source}: expected letters, digits and signs of ASCII, without spaces")


#: The schema of every command.
SCHEMAS: tuple[type[Settings], ...] = (
    *(Config, ComposeConfig, CredentialsConfig, ExtractConfig, PrepareConfig, ReportConfig),
    *(EvaluateConfig, ExportConfig, PredictConfig, ServeConfig),
)
