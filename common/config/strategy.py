"""One federated algorithm: what clients send and how it is merged. The default is FedAvg."""

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

from common.config.ranges import at_least, positive, ranged, share, share_above_zero
from common.errors import UserError

#: When an option is in force; ``skewed``: where the clients' labels differ enough.
Condition = StrEnum("Condition", ["never", "always", "skewed"])

#: Whether a posterior keeps its client's overall scale.
Scale = StrEnum("Scale", ["relative", "absolute"])


@dataclass
class EncoderConfig:
    """How encoders are merged, and the posterior that clients fit for it."""

    merge: str = "average"  # a name in `server.aggregation.rules.RULES`
    structure: str = "row"  # a name in `common.structures.STRUCTURES`
    shrinkage: float = share_above_zero(0.5)
    scale: Scale = Scale.relative


@dataclass
class DecoderConfig:
    """How decoders are merged; all but the first two are CmDA's."""

    merge: str = "average"  # a name in `server.aggregation.rules.RULES`
    shrinkage: float = share_above_zero(0.1)  # of the posterior
    epsilon: float = at_least(0, 1.2)
    temperature: float = positive(1.0)
    sign: int = ranged(1, "1 or -1", lambda value: value in (1, -1))
    noise: float = at_least(0, 1e-3)


#: What a client takes from its local iterates.
Sampler = StrEnum("Sampler", ["last", "iasg", "sgld", "sghmc"])


@dataclass
class SamplerConfig:
    """Posterior sampling; see `client.sampling`."""

    name: Sampler = Sampler.last
    num_samples: int = positive(4)
    burn_in: float = share(0.75)
    segment: int | None = positive(None)  # steps a sample; None: all after burn-in, shared out
    lr: float = positive(0.01)  # of sgld and sghmc, as are the next two
    temperature: float = at_least(0, 1.0)
    friction: float = share_above_zero(0.1)


#: How much each client counts; see `server.aggregation.client_weights`.
ClientWeights = StrEnum("ClientWeights", ["examples", "uniform", "agreement"])


@dataclass
class LocalConfig:
    """What a strategy changes in local training; see `client.trainer`."""

    proximal: float = at_least(0, 0.0)
    logit_adjustment: Condition = Condition.never
    lr_decay: Condition = Condition.never


@dataclass
class FedAttConfig:
    """Attention over clients."""

    epsilon: float = at_least(0, 1.2)
    noise: float = at_least(0, 1e-3)


#: How the server steps from the old model to the merged one.
ServerOptimizer = StrEnum("ServerOptimizer", ["sgd", "momentum", "adam"])


@dataclass
class ServerOptimizerConfig:
    """See `server.aggregation.server_optimizer`; sgd at rate 1 takes the merged model as it is."""

    name: ServerOptimizer = ServerOptimizer.sgd
    lr: float = positive(1.0)
    momentum: float = share(0.9)  # of adam too, its beta1
    beta2: float = share(0.99)
    tau: float = positive(1e-3)
    when: Condition = Condition.always


@dataclass
class ScreeningConfig:
    """What the server makes of well-formed updates that are out of proportion; null: anything."""

    # The largest change, as a multiple of the median; a larger one is scaled down to it.
    norm_factor: float | None = at_least(1, 2.0)
    # The largest precision, as a multiple of the median or of what its shrinkage allows.
    precision_factor: float | None = at_least(1, 100.0)
    # A client's whole change, encoder and decoder, is scaled down to this norm.
    clip_norm: float | None = positive(None)
    # The most that a round may add to a modality's loss on the coordinator's items, as a share of
    # the loss without features; and the most that a client may undo, as a share of what is
    # explained without it. Who does more is left out.
    max_loss_rise: float | None = positive(0.1)
    # A node is excluded for the rest of the run after this many refused updates.
    max_faults: int | None = positive(3)


#: How weights travel to the clients; replies are always float32.
Payload = StrEnum("Payload", ["float32", "float16"])


@dataclass
class StrategyConfig:
    """One federated algorithm."""

    name: str = MISSING
    setting: str = "federated"  # or the name of a baseline, see server.baselines
    architecture: str = "ha_fedformer"  # what the centralised baseline trains
    fraction: float = share_above_zero(1.0)
    weights: ClientWeights = ClientWeights.examples
    normalise_steps: bool = False
    trim: float = ranged(0.2, "a share in [0, 0.5)", lambda value: 0 <= value < 0.5)
    # The share of the rounds, from the first, in which clients measure what their maps read.
    posterior_rounds: float = ranged(1.0, "a share in [0, 1]", lambda value: 0 <= value <= 1)
    skew_threshold: float = at_least(0, 0.1)
    # Whether clients send sums, once, of which each modality's linear expert is made.
    linear: bool = True
    payload: Payload = Payload.float32
    local: LocalConfig = field(default_factory=LocalConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    fedatt: FedAttConfig = field(default_factory=FedAttConfig)
    server_optimizer: ServerOptimizerConfig = field(default_factory=ServerOptimizerConfig)
    screening: ScreeningConfig = field(default_factory=ScreeningConfig)

    def check(self) -> None:
        """Refuse normalised steps where clients are not averaged."""
        encoder, decoder = self.encoder.merge, self.decoder.merge
        if self.normalise_steps and not (encoder in ("average", "pbea") and decoder == "average"):
            raise UserError(
                "strategy.normalise_steps=true needs averages, and the run has "
                f"strategy.encoder.merge={encoder} and strategy.decoder.merge={decoder}"
            )
