"""Who is out of all proportion to the others, and who only looks so."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from common.clients import ClientKey
from common.config import (
    Config,
    DecoderConfig,
    EncoderConfig,
    Optimizer,
    PrivacyConfig,
    PrivacyRule,
    Sampler,
    SamplerConfig,
    Scale,
    ScreeningConfig,
    StrategyConfig,
)
from common.messages import Uplink, no_numbers
from common.model.ha_fedformer import ModelArrays
from common.posterior import Form, Gaussian, Posterior
from server.acceptance.screening import Screening
from server.acceptance.validation import RejectedUpdateError

#: The encoders have 4 and 16 numbers, and a norm of 2 and 4.
SENT = ModelArrays(
    {"audio": {"e": torch.ones(4)}, "vision": {"e": torch.ones(16)}}, {"d": torch.ones(4)}
)
#: What is sent is no mean of the optimiser's iterates, so that nothing is known of its reach.
UNKNOWN = StrategyConfig(
    "x",
    sampler=SamplerConfig(Sampler.sgld),
    encoder=EncoderConfig("pbea"),
    decoder=DecoderConfig("cmda"),
)


def update(
    name: str, encoder: float, decoder: float = 0.1, *, steps: int = 1, scale: float | None = None
) -> Uplink:
    """Move encoder and decoder by a norm each."""
    modality, _, part = name.partition("-")
    size = len(SENT.encoders[modality]["e"])
    mean = 1 + torch.full((size,), encoder / size**0.5)
    moved = Gaussian(mean)
    if scale is not None:
        moved = Gaussian(mean, torch.full((size,), scale), Form.diagonal)
    head = Gaussian(1 + torch.full((4,), decoder / 2))
    key = ClientKey(modality, int(part))
    parts = (Posterior.of({"e": moved}), Posterior.of({"d": head}))
    return Uplink(key, 1, *parts, 9, 0.0, no_numbers(), no_numbers(), steps)


def refused(*uplinks: Uplink, strategy: StrategyConfig = UNKNOWN, lr: float = 1e-3) -> set[str]:
    config = Config(strategy=strategy)
    config.client.lr = lr
    return screened(uplinks, config)


def screened(uplinks: Iterable[Uplink], config: Config) -> set[str]:
    """Refuse who is out of proportion to a former round of the same updates."""
    former = Screening(SENT, config, {})
    uplinks = list(uplinks)
    for uplink in uplinks:
        with suppress(RejectedUpdateError):
            former.screen(uplink)
    screening, refused = Screening(SENT, config, former.medians()), set()
    for uplink in uplinks:
        try:
            screening.screen(uplink)
        except RejectedUpdateError:
            refused.add(str(uplink.key))
    return refused


def moved(*clients: tuple[str, float] | tuple[str, float, float]) -> list[Uplink]:
    return [update(*client) for client in clients]


@pytest.mark.parametrize(
    ("others", "name", "within", "beyond"),
    [
        (moved(("audio-0", 0.1), ("audio-1", 0.3)), "audio-2", (2.9,), (3.1,)),
        # Decoders by the median of all.
        (
            moved(("audio-0", 0.1, 0.1), ("vision-0", 0.2, 0.2)),
            *("vision-1", (0.2, 1.9), (0.2, 2.1)),
        ),
        # A lone client by the root mean square of all: .1 over 4 numbers is as much as .2 over 16.
        (moved(*((f"audio-{n}", 0.1) for n in range(3))), "vision-0", (1.9,), (2.1,)),
        # A majority of its modality that sends nothing changes nothing for the third.
        (
            moved(("audio-0", 0), ("audio-1", 0), *((f"vision-{n}", 0.2) for n in range(3))),
            *("audio-2", (0.9,), (1.1,)),
        ),
        # Fewer than three by what they were sent.
        ([], "audio-0", (19.9,), (20.1,)),
        (moved(("vision-0", 0.1)), "audio-0", (19.9,), (20.1,)),
    ],
)
def test_a_change_is_measured_by_the_median(
    others: list[Uplink], name: str, within: tuple[float, ...], beyond: tuple[float, ...]
) -> None:
    assert refused(*others, update(name, *within)) == set()
    assert refused(*others, update(name, *beyond)) == {name}


def test_a_modality_that_moves_more_than_the_others_is_its_own_measure() -> None:
    still = [update(f"vision-{part}", 0.01) for part in range(4)]
    lively = [update(f"audio-{part}", 2.0) for part in range(3)]
    assert refused(*still, *lively) == set()


def test_a_majority_does_not_move_what_was_sent() -> None:
    away = [update("audio-0", 100), update("audio-1", 100)]
    assert refused(*away, update("audio-2", 0.1)) == {"audio-0", "audio-1"}


def trained(lr: float, optimizer: Optimizer = Optimizer.adamw) -> Config:
    """Configure clients whose reach is known."""
    config = Config(strategy=replace(UNKNOWN, sampler=SamplerConfig(Sampler.last)))
    config.client = replace(config.client, lr=lr, optimizer=optimizer, weight_decay=0.0)
    return config


@pytest.mark.parametrize(
    ("optimizer", "steps", "far", "too_far"),
    [
        # .1 / sqrt(.001) = 3.16 rates a step for each of 4 numbers: 6.3 rates.
        (Optimizer.adamw, 1000, 6.2, 6.4),
        # The gradient's norm is at most 1.
        (Optimizer.sgd, 6000, 5.9, 6.1),
    ],
)
def test_what_local_training_can_do_is_never_refused(
    optimizer: Optimizer, steps: int, far: float, too_far: float
) -> None:
    others = [update("audio-0", 0.1), update("audio-1", 0.1)]
    for norm, expected in ((far, set()), (too_far, {"audio-2"})):
        third = update("audio-2", norm, steps=steps)
        assert screened([*others, third], trained(1e-3, optimizer)) == expected


def test_adam_really_goes_no_farther() -> None:
    """The gradients that it goes farthest by: none for long, then a large one."""
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.0)
    for step in range(60):
        weight.grad = torch.full((4,), 0.0 if step < 40 else 10.0 ** (step - 40))
        optimizer.step()
    moved = (weight - 1).norm().item()
    others = [update("audio-0", 1e-6, 1e-6), update("audio-1", 1e-6, 1e-6)]
    assert moved > 1e-5 * 10
    assert screened([*others, update("audio-2", moved, 1e-6, steps=60)], trained(0.01)) == set()


ABSOLUTE = replace(UNKNOWN, encoder=EncoderConfig("pbea", "diagonal", 0.5, Scale.absolute))


def test_a_precision_is_measured_by_the_median() -> None:
    others = [update("audio-0", 0.1, scale=2.0), update("audio-1", 0.1, scale=3.0)]
    for scale, expected in ((299.0, set()), (301.0, {"audio-2"}), (1e-9, set())):
        third = update("audio-2", 0.1, scale=scale)
        assert refused(*others, third, strategy=ABSOLUTE) == expected
    relative = replace(ABSOLUTE, encoder=replace(ABSOLUTE.encoder, scale=Scale.relative))
    assert refused(*others, update("audio-2", 0.1, scale=301), strategy=relative) == set()


def test_precisions_of_next_to_nothing_do_not_make_the_third_look_large() -> None:
    small = [update("audio-0", 0.1, scale=1e-9), update("audio-1", 0.1, scale=1e-9)]
    others = [update(f"vision-{part}", 0.2, scale=1.0) for part in range(3)]
    third = update("audio-2", 0.1, scale=1.0)
    assert refused(*small, third, *others, strategy=ABSOLUTE) == set()


def test_rules_can_be_switched_off() -> None:
    off = replace(ABSOLUTE)
    off.screening = replace(off.screening, norm_factor=None, precision_factor=None)
    uplinks = [update(f"audio-{n}", 10.0**n, scale=1e3**n) for n in range(5)]
    assert refused(*uplinks, strategy=off) == set()
    assert refused(*uplinks, strategy=ABSOLUTE) != set()


def test_decoders_posteriors_always_keep_their_scale() -> None:
    strategy = replace(UNKNOWN, decoder=DecoderConfig("posterior"))

    def sure(name: str, scale: float) -> Uplink:
        made = update(name, 0.1)
        head = Gaussian(made.decoder["d"].mean, torch.full((4,), scale), Form.diagonal)
        return replace(made, decoder=Posterior.of({"d": head}))

    uplinks = [sure("audio-0", 1.0), sure("vision-0", 1.0), sure("vision-1", 101.0)]
    assert refused(*uplinks, strategy=strategy) == {"vision-1"}


# --- Clipping ---------------------------------------------------------------------------------


def clipped(uplink: Uplink, norm: float) -> Uplink:
    off = replace(UNKNOWN, screening=ScreeningConfig(norm_factor=None, clip_norm=norm))
    return Screening(SENT, Config(strategy=off), {}).screen(uplink)


def test_the_whole_change_is_scaled_down_to_the_norm() -> None:
    small = clipped(update("audio-0", 3.0, 4.0, scale=2.0), 2.5)
    torch.testing.assert_close(small.encoder["e"].mean, 1 + torch.full((4,), 0.75))
    torch.testing.assert_close(small.decoder["d"].mean, 1 + torch.full((4,), 1.0))
    assert small.encoder["e"].precision is not None
    assert small.encoder["e"].precision.tolist() == [2.0] * 4


def test_a_smaller_change_stays_as_it_is() -> None:
    small = update("audio-0", 3.0, 4.0)
    assert clipped(small, 5.1) is small


def test_a_change_that_exceeds_the_clip_of_private_clients_is_named() -> None:
    config = Config(strategy=UNKNOWN, privacy=PrivacyConfig(PrivacyRule.central, clip=0.5))
    screening = Screening(SENT, config, {})
    screening.screen(update("audio-0", 0.3, 0.4))
    with pytest.raises(RejectedUpdateError, match=r"is 5, expected at most privacy\.clip=0\.5"):
        screening.screen(update("audio-1", 3.0, 4.0))
    assert screening.medians() == {}
