"""The settings of a run of `utmp-train`; ``conf/config.yaml`` holds their values."""

from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import Any

from omegaconf import MISSING

from common.config.ranges import Settings, at_least, path_setting, positive, ranged, share
from common.config.strategy import StrategyConfig
from common.errors import UserError
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
    # For experiments: this many clients of each modality get the labels of other items of theirs.
    permuted_clients: int = at_least(0, 0)


@dataclass
class SyntheticConfig(DatasetConfig):
    """The embedded dataset; see `common.data.synthetic`."""

    name: str = "synthetic"
    num_items: int = positive(6000)
    num_speakers: int = positive(60)
    noise: float = at_least(0, 1.0)


#: How items are divided into training, validation and test.
Split = StrEnum("Split", ["auto", "source", "random", "none", "evaluation"])


@dataclass
class FileConfig(DatasetConfig):
    """Any source of `common.data.formats`, read as `utmp-prepare` reads it."""

    name: str = "file"
    path: Any = path_setting(MISSING)  # noqa: RUF009
    test_path: str | None = path_setting(None)
    format: str = "auto"
    group: str | None = None
    context: int = at_least(0, 0)
    tabular: list[str] = field(default_factory=list)
    label: str | None = None
    labels: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    arrays: dict[str, str] = path_setting({})  # noqa: RUF009
    split: Split = Split.auto


@dataclass
class ShardsConfig(FileConfig):
    """A folder that `utmp-prepare` wrote, see `common.data.shards`, which says how it was read."""

    name: str = "shards"
    path: str = path_setting(MISSING)
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
    **{f"dataset={kind.name}": kind for kind in (SyntheticConfig, FileConfig, ShardsConfig)},
    **{f"partition={kind.name}": kind for kind in (DirichletConfig, SizeConfig)},
}


@dataclass
class ModelConfig:
    """Sizes and dropout rates of HA-Fedformer."""

    width: int = positive(30)
    heads: int = positive(5)
    layers: int = positive(5)
    kernel_size: int = positive(1)
    causal: bool = False
    decoder_layers: int = positive(3)
    embedding_dropout: float = share(0.25)
    attention_dropout: dict[str, float] = share({"default": 0.0})  # noqa: RUF009
    relu_dropout: float = share(0.1)
    residual_dropout: float = share(0.1)


#: Local optimisers.
Optimizer = StrEnum("Optimizer", ["adamw", "adam", "sgd"])


@dataclass
class ClientConfig:
    """Local training on one client."""

    optimizer: Optimizer = Optimizer.adamw
    lr: float = positive(1e-3)
    weight_decay: float = at_least(0, 1e-5)
    batch_size: int = positive(24)
    local_epochs: int = positive(2)
    max_grad_norm: float = positive(1.0)
    validation_fraction: float = share(0.2)
    num_workers: int = at_least(0, 0)
    device: str = "auto"
    threads: int = positive(1)


#: How modalities are joined at prediction; see `common.model.fusion`.
FusionRule = StrEnum(
    "FusionRule", ["auto", "calibrated", "mean", "reliability", "product_of_experts"]
)


@dataclass
class FusionConfig:
    """The fusion rule."""

    name: FusionRule = FusionRule.auto


#: Where noise is added: nowhere, to the averages on the server, or on every client.
PrivacyRule = StrEnum("PrivacyRule", ["none", "central", "local"])


@dataclass
class PrivacyConfig:
    """Differential privacy of what clients send."""

    name: PrivacyRule = PrivacyRule.none
    clip: float = positive(1.0)  # L2 norm of a client's whole change, encoder and decoder
    noise_multiplier: float = positive(1.0)  # standard deviation of the noise over the clip
    delta: float = ranged(1e-5, "a probability in (0, 1)", lambda value: 0 < value < 1)


#: Where a run's figures are logged besides its own folder.
TrackingTool = StrEnum("TrackingTool", ["tensorboard", "mlflow", "none"])


@dataclass
class TrackingConfig:
    """See `server.tracking`."""

    name: TrackingTool = TrackingTool.tensorboard
    uri: str | None = None  # of MLflow; None: as MLflow itself finds it
    experiment: str = "ha-fedformer"  # of MLflow


#: Where `utmp-train` runs clients: in processes, one by one in its own process, or on Ray.
Runtime = StrEnum("Runtime", ["processes", "sequential", "simulation"])

#: In a round without clients of a modality: keep its encoder, or end the run.
OnMissingModality = StrEnum("OnMissingModality", ["reuse", "abort"])


@dataclass
class RayConfig:
    """The Ray cluster of a simulation that is larger than one machine."""

    address: str | None = None  # host:port of its head; None: this machine alone


@dataclass
class RuntimeConfig:
    """Where clients run, how long the server waits for them, and how many it needs."""

    name: Runtime = Runtime.processes
    client_cpus: int = positive(1)
    client_gpus: float | None = at_least(0, None)
    node_timeout: float = at_least(0, 120.0)  # seconds
    round_timeout: float = positive(3600.0)  # seconds
    min_clients: int = positive(1)  # of each modality, for its part of a round to count
    absent: OnMissingModality = OnMissingModality.reuse
    ray: RayConfig = field(default_factory=RayConfig)


#: What a run prints: text for people, or one JSON object a line for a log collector.
ConsoleStyle = StrEnum("ConsoleStyle", ["text", "json"])


#: Which round's model is that of a run: that with the least loss on the validation items, or the
#: last.
Delivered = StrEnum("Delivered", ["best", "last"])


@dataclass
class CheckpointConfig:
    """Which rounds of a run are kept, and which one it delivers; see `server.run.run`."""

    keep: int = positive(2)  # of the last, besides the best
    deliver: Delivered = Delivered.best


#: What privacy needs: the sums whose sensitivity is known, and that nothing else leaves a client.
_PRIVATE: tuple[tuple[str, str], ...] = (
    ("strategy.setting", "federated"),
    ("strategy.sampler.name", "last"),
    ("strategy.encoder.merge", "average"),
    ("strategy.decoder.merge", "average"),
    ("strategy.weights", "uniform"),
    ("strategy.normalise_steps", "False"),
    ("strategy.linear", "False"),
    ("fusion.name", "mean"),
    # A modality that is dropped after the noise was shared out would take its share with it.
    ("runtime.min_clients", "1"),
)


@dataclass
class Config(Settings):
    """Everything that decides a run."""

    seed: int = 1234
    rounds: int = positive(20)
    patience: int | None = positive(None)  # rounds without a better one, after which the run ends
    run_dir: str = path_setting(MISSING)
    resume: str | None = path_setting(None)
    console: ConsoleStyle = ConsoleStyle.text
    clients: dict[str, int | None] = at_least(0, {"default": None})  # noqa: RUF009
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    partition: PartitionConfig = field(
        default_factory=lambda: PartitionConfig(PartitionRule.groups)
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def check(self) -> None:
        """Refuse settings that do not fit together."""
        check_held_back(self.dataset, "dataset.")
        if isinstance(self.dataset, FileConfig):
            label_columns(self.dataset, "dataset.")
        self.strategy.check()
        for name, needed in _PRIVATE if self.privacy.name is not PrivacyRule.none else ():
            if (value := str(attrgetter(name)(self))) != needed:
                raise UserError(
                    f"privacy={self.privacy.name} needs {name}={needed.lower()}, and the run has "
                    f"{name}={value.lower()}; experiment=private sets all that it needs"
                )
        address, runtime, model = self.runtime.ray.address, self.runtime.name, self.model
        if address is not None and runtime is not Runtime.simulation:
            raise UserError(
                f"runtime.ray.address={address} needs runtime=simulation, and the run has "
                f"runtime={runtime}"
            )
        if model.width % model.heads:
            raise UserError(
                f"model.width={model.width} is not divisible by model.heads={model.heads}"
            )


def check_held_back(config: Any, prefix: str = "") -> None:
    """Raise `UserError` if a split, of a dataset or a preparation, leaves nothing to train on.

    With ``split=evaluation`` it is meant to; then the fractions are relative to each other.
    """
    held_back = config.validation_fraction + config.test_fraction
    if getattr(config, "split", None) is Split.evaluation:
        if held_back == 0:
            raise UserError(f"{prefix}split=evaluation needs a fraction for validation and test")
    elif held_back >= 1:
        raise UserError(
            f"{prefix}validation_fraction + {prefix}test_fraction={held_back}: expected less than "
            f"1; {prefix}split=evaluation is for data that nobody trains on"
        )


def label_columns(config: Any, prefix: str = "") -> tuple[str, ...]:
    """Return the columns of a table that ``label`` or ``labels`` names; not both."""
    if config.label is not None and config.labels:
        both = f"{prefix}label={config.label} and {prefix}labels=[{','.join(config.labels)}]"
        raise UserError(f"{both}: give one of the two")
    return tuple(config.labels) if config.label is None else (config.label,)
