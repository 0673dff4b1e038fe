"""The settings of the commands that use a trained model; ``conf/trained/`` holds their values.

That folder has no groups, so `model` and `dataset` can be settings there.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from common.config.ranges import Settings, at_least, between, count, positive, ranged, required
from common.errors import UserError

#: Formats of a file of predictions, by its suffix.
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")

#: Settings that say how the dataset of an evaluation is read.
_READING = ("format", "emotions", "labels", "group", "context", "arrays")


@dataclass
class TrainedSettings(Settings):
    """What these commands share."""

    folder: ClassVar[str] = "conf.trained"

    model: str | None = required(None, "a run folder or its model file")


@dataclass
class PredictConfig(TrainedSettings):
    """Settings of `utmp-predict`."""

    file: ClassVar[str] = "predict"

    input: Any = required(None, "a shard, or a file of any format")  # noqa: RUF009
    out: str = "predictions.csv"
    overwrite: bool = False
    format: str = "auto"
    modalities: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    batch_size: int = positive(256)
    device: str = "auto"
    threads: int = positive(1)
    max_seq_len: int | None = positive(None)
    group: str | None = None
    context: int | None = at_least(0, None)
    arrays: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse output of an unknown format."""
        if Path(self.out).suffix not in SUFFIXES:
            raise UserError(f"out={self.out}: expected a file that ends in {', '.join(SUFFIXES)}")


#: Which of a run's held-out items to evaluate.
Side = StrEnum("Side", ["validation", "test"])


@dataclass
class EvaluateConfig(TrainedSettings):
    """Settings of `utmp-evaluate`."""

    file: ClassVar[str] = "evaluate"

    dataset: Any = None
    side: Side = Side.test
    out: str | None = None
    overwrite: bool = False
    format: str = "auto"
    modalities: list[str] = field(default_factory=list)
    device: str = "auto"
    emotions: bool = False
    labels: list[str] = field(default_factory=list)
    max_seq_len: int | None = positive(None)
    group: str | None = None
    context: int | None = at_least(0, None)
    arrays: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse settings of a dataset without a dataset."""
        default = EvaluateConfig()
        changed = [name for name in _READING if getattr(self, name) != getattr(default, name)]
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

    file: ClassVar[str] = "export"

    out: str = required("onnx")
    overwrite: bool = False
    subsets: list[str] = field(default_factory=list)


@dataclass
class ServeConfig(TrainedSettings):
    """Settings of `utmp-serve`."""

    file: ClassVar[str] = "serve"

    labels: list[str] = field(default_factory=list)
    examples: str = "auto"
    device: str = "auto"
    threads: int = count(1)
    host: str = "127.0.0.1"
    port: int = between(0, 65535, 8100)
    token: str | None = None
    token_file: str | None = None
    ssl_cert: str | None = None
    ssl_key: str | None = None
    max_body_mb: float = ranged(
        16.0, "a number above 0, up to 1024", lambda value: 0 < value <= 1024
    )
    max_items: int = count(1000)
    max_steps: int = count(1000)
    max_batch: int = count(256)
    max_wait_ms: float = between(0, 1000, 5.0)
    max_queue: int = count(4096)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def check(self) -> None:
        """Refuse a missing host, and settings that do not fit together."""
        if not self.host.strip():
            raise UserError(
                "host is required; 127.0.0.1 answers this machine only, 0.0.0.0 everyone"
            )
        if self.token is not None and self.token_file is not None:
            raise UserError("token and token_file are both given; give one of the two")
        check_token(self.token, "token")
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
