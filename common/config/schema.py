"""The names and types of all settings; ``conf/`` holds their values."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from common.config.partition import PartitionConfig, PartitionRule
from common.config.privacy import PrivacyConfig
from common.config.runtime import CheckpointConfig, ConsoleStyle, RuntimeConfig
from common.config.screening import ScreeningConfig
from common.config.tracking import TrackingConfig
from common.task import Task


class Standardisation(StrEnum):
    """Whose statistics centre and scale a feature."""

    pooled = "pooled"
    client = "client"


@dataclass
class DatasetConfig:
    """What every dataset has; each kind adds its own settings."""

    name: str = MISSING
    task: Task | None = Task.regression  # None: as the shards say
    modalities: list[str] = field(default_factory=list)
    max_seq_len: int | None = 50
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    standardisation: Standardisation = Standardisation.pooled
    # Edges of the bins in which numbers are counted to see how clients' labels differ: Acc-7's.
    label_bins: list[float] = field(default_factory=lambda: [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    # For experiments: so many clients of each modality get the labels of other items of theirs.
    permuted_clients: int = 0


@dataclass
class SyntheticConfig(DatasetConfig):
    """The embedded dataset; see `common.data.synthetic`."""

    name: str = "synthetic"
    num_items: int = 2400
    num_speakers: int = 60
    noise: float = 1.0


@dataclass
class NpzConfig(DatasetConfig):
    """Arrays in ``.npz`` files; see `common.data.formats.npz`."""

    name: str = "npz"
    path: Any = MISSING  # one path or a list of paths
    test_path: str | None = None
    group: str | None = None
    context: int = 0
    tabular: list[str] = field(default_factory=list)


@dataclass
class ShardsConfig(DatasetConfig):
    """A folder that `utmp-prepare` wrote; see `common.data.shards`."""

    name: str = "shards"
    path: str = MISSING
    task: Task | None = None
    max_seq_len: int | None = None


@dataclass
class ModelConfig:
    """Sizes and dropout rates of HA-Fedformer."""

    width: int = 30
    heads: int = 5
    layers: int = 5
    kernel_size: int = 1
    causal: bool = False
    decoder_layers: int = 3
    embedding_dropout: float = 0.25
    attention_dropout: dict[str, float] = field(default_factory=lambda: {"default": 0.0})
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1


class Optimizer(StrEnum):
    """Local optimisers."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"


@dataclass
class ClientConfig:
    """Local training on one client."""

    optimizer: Optimizer = Optimizer.adamw
    lr: float = 1e-3
    weight_decay: float = 1e-5
    batch_size: int = 24
    local_epochs: int = 2
    max_grad_norm: float = 1.0
    validation_fraction: float = 0.2
    num_workers: int = 0
    device: str = "auto"
    threads: int = 1


class When(StrEnum):
    """When an option is in force; ``skewed``: where the clients' labels differ enough."""

    never = "never"
    always = "always"
    skewed = "skewed"


class EncoderMerge(StrEnum):
    """How the encoders of one modality become one."""

    average = "average"
    pbea = "pbea"
    fedatt = "fedatt"
    median = "median"
    trimmed_mean = "trimmed_mean"


class Structure(StrEnum):
    """Structure of a client's posterior, per tensor; see `client.posterior`."""

    diagonal = "diagonal"
    row = "row"
    low_rank = "low_rank"
    inputs = "inputs"


class Scale(StrEnum):
    """Whether a posterior keeps its client's overall scale."""

    relative = "relative"
    absolute = "absolute"


@dataclass
class EncoderConfig:
    """PbEA; see `client.posterior` and `server.aggregation.pbea`."""

    merge: EncoderMerge = EncoderMerge.pbea
    structure: Structure = Structure.row
    shrinkage: float = 0.5
    scale: Scale = Scale.relative


class DecoderMerge(StrEnum):
    """How the decoders of the modalities become one."""

    average = "average"
    cmda = "cmda"
    posterior = "posterior"
    fedatt = "fedatt"
    median = "median"
    trimmed_mean = "trimmed_mean"


@dataclass
class DecoderConfig:
    """CmDA, see `server.aggregation.cmda`; or the product of posteriors over ``inputs``."""

    merge: DecoderMerge = DecoderMerge.cmda
    shrinkage: float = 0.1  # of the posterior
    epsilon: float = 1.2
    temperature: float = 1.0
    sign: int = 1
    noise: float = 1e-3


class Sampler(StrEnum):
    """What a client takes from its local iterates."""

    last = "last"
    iasg = "iasg"
    sgld = "sgld"
    sghmc = "sghmc"


@dataclass
class SamplerConfig:
    """Posterior sampling; see `client.sampling`."""

    name: Sampler = Sampler.iasg
    num_samples: int = 4
    burn_in: float = 0.75
    segment: int | None = None  # steps a sample; None: all after burn-in, shared out
    lr: float = 0.01  # of sgld and sghmc, as are the next two
    temperature: float = 1.0
    friction: float = 0.1


class Setting(StrEnum):
    """Who trains on what; all but ``federated`` are bounds, see `server.baselines`."""

    federated = "federated"
    local = "local"
    pooled = "pooled"
    centralised = "centralised"


class Architecture(StrEnum):
    """What the centralised bound trains."""

    ha_fedformer = "ha_fedformer"
    early_fusion = "early_fusion"
    cross_modal = "cross_modal"


class ClientWeights(StrEnum):
    """How much each client counts; see `server.aggregation.client_weights`."""

    examples = "examples"
    uniform = "uniform"
    agreement = "agreement"


@dataclass
class LocalConfig:
    """What a strategy changes in local training; see `client.trainer`."""

    proximal: float = 0.0
    logit_adjustment: When = When.never
    lr_decay: When = When.never


@dataclass
class FedAttConfig:
    """Attention over clients; see `server.aggregation.fedatt`."""

    epsilon: float = 1.2
    noise: float = 1e-3


class ServerOptimizer(StrEnum):
    """How the server steps from the old model to the merged one."""

    sgd = "sgd"
    momentum = "momentum"
    adam = "adam"


@dataclass
class ServerOptimizerConfig:
    """See `server.aggregation.server_optimizer`; sgd at rate 1 takes the merged model as it is."""

    name: ServerOptimizer = ServerOptimizer.sgd
    lr: float = 1.0
    momentum: float = 0.9  # of adam too, its beta1
    beta2: float = 0.99
    tau: float = 1e-3
    when: When = When.always


class Payload(StrEnum):
    """How the weights travel to the clients; what these return is always whole."""

    float32 = "float32"
    float16 = "float16"


@dataclass
class StrategyConfig:
    """One federated algorithm: what clients sample and how the server merges."""

    name: str = MISSING
    setting: Setting = Setting.federated
    architecture: Architecture = Architecture.ha_fedformer
    fraction: float = 1.0
    weights: ClientWeights = ClientWeights.examples
    normalise_steps: bool = False
    trim: float = 0.2
    # The share of the rounds, from the first, in which clients measure what their maps read.
    posterior_rounds: float = 1.0
    skew_threshold: float = 0.1
    payload: Payload = Payload.float32
    local: LocalConfig = field(default_factory=LocalConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    fedatt: FedAttConfig = field(default_factory=FedAttConfig)
    server_optimizer: ServerOptimizerConfig = field(default_factory=ServerOptimizerConfig)
    screening: ScreeningConfig = field(default_factory=ScreeningConfig)


class FusionRule(StrEnum):
    """How modalities are joined at prediction; see `common.model.fusion`."""

    auto = "auto"
    mean = "mean"
    reliability = "reliability"
    product_of_experts = "product_of_experts"


@dataclass
class FusionConfig:
    """The fusion rule."""

    name: FusionRule = FusionRule.auto


@dataclass
class Config:
    """Everything that decides a run."""

    seed: int = 1234
    rounds: int = 20
    run_dir: str = MISSING
    resume: str | None = None
    console: ConsoleStyle = ConsoleStyle.text
    clients: dict[str, int | None] = field(default_factory=lambda: {"default": None})
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


def register_schema() -> None:
    """Put the schema into Hydra's ConfigStore under the names that ``conf/`` refers to."""
    store = ConfigStore.instance()
    schema = OmegaConf.structured(Config)
    # Modalities are the user's words, so these two maps take any name: clients.fourier=2.
    OmegaConf.set_struct(schema.clients, False)
    OmegaConf.set_struct(schema.model.attention_dropout, False)
    store.store(name="schema", node=schema)
    # Outside their group: in it, Hydra would take the `dataset=…` of utmp-evaluate for a choice.
    store.store(name="synthetic_schema", node=SyntheticConfig)
    store.store(name="npz_schema", node=NpzConfig)
    store.store(name="shards_schema", node=ShardsConfig)


register_schema()
