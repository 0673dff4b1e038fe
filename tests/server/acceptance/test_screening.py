"""Who is out of all proportion to the others, and who only looks so."""

from collections.abc import Iterable

import pytest
import torch
from memory_federation import config_with
from updates import uplink

from common.messages import Uplink
from common.model.ha_fedformer import ModelArrays
from common.posterior import Form, Gaussian
from server.acceptance.screening import Screening
from server.acceptance.validation import RejectedUpdateError

#: The encoders have 4 and 16 numbers, and a norm of 2 and 4.
SENT = ModelArrays(
    {"audio": {"e": torch.ones(4)}, "vision": {"e": torch.ones(16)}}, {"d": torch.ones(4)}
)
#: What is sent is no mean of the optimiser's iterates, so that nothing is known of its reach.
UNKNOWN = ("strategy=paper", "strategy.sampler.name=sgld")
RELATIVE = (*UNKNOWN, "strategy.encoder.structure=diagonal")
ABSOLUTE = (*RELATIVE, "strategy.encoder.scale=absolute")
SURE = (*UNKNOWN, "strategy.decoder.merge=posterior")
SMALL = "audio-0@1e-9, audio-1@1e-9, vision-0@1 .2, vision-1@1 .2, vision-2@1 .2"
THREE = "vision-0 {0}, vision-1 {0}, vision-2 {0}"


def gaussian(size: int, norm: float, scale: float | None) -> Gaussian:
    """Move ones by a norm; be as sure of each as the scale says."""
    mean = 1 + torch.full((size,), norm / size**0.5)
    return Gaussian(mean, *(() if scale is None else (scale * torch.ones(size), Form.diagonal)))


def update(
    name: str,
    encoder: float = 0.1,
    decoder: float = 0.1,
    *,
    steps: int = 1,
    scale: float | None = None,
    decoder_scale: float | None = None,
) -> Uplink:
    """Move encoder and decoder by a norm each."""
    size = len(SENT.encoders[name.partition("-")[0]]["e"])
    parts = {"e": gaussian(size, encoder, scale)}, {"d": gaussian(4, decoder, decoder_scale)}
    return uplink(name, encoder=parts[0], decoder=parts[1], steps=steps)


def refused(uplinks: Iterable[Uplink], *settings: str) -> set[str]:
    """Say who is out of proportion to a former round of the same updates."""
    config = config_with(*settings)
    former = Screening(SENT, config, {})
    for each in uplinks:
        former.measure(each)
    screening, found = Screening(SENT, config, former.medians()), set[str]()
    for each in uplinks:
        screening.measure(each)
        try:
            screening.screen(each)
        except RejectedUpdateError:
            found.add(str(each.key))
    return found


def moved(clients: str) -> list[Uplink]:
    """Parse clients with the norms of their encoder and decoder, as in ``audio-0 .1 .2``.

    The scales of their precisions may follow the name: ``audio-0@2`` of the encoder, ``audio-0@@2``
    of the decoder.
    """
    made = []
    for name, *norms in (each.split() for each in clients.split(",") if each):
        key, *scales = name.split("@")
        encoder, decoder = [float(scale) if scale else None for scale in [*scales, "", ""][:2]]
        made.append(update(key, *map(float, norms), scale=encoder, decoder_scale=decoder))
    return made


@pytest.mark.parametrize(
    ("settings", "others", "within", "beyond"),
    [
        (UNKNOWN, "audio-0, audio-1 .3", "audio-2 2.9", "audio-2 3.1"),
        # Decoders by the median of all.
        (UNKNOWN, "audio-0 .1 .1, vision-0 .2 .2", "vision-1 .2 1.9", "vision-1 .2 2.1"),
        # A lone client by the root mean square of all: .1 over 4 numbers is as much as .2 over 16.
        (UNKNOWN, "audio-0, audio-1, audio-2", "vision-0 1.9", "vision-0 2.1"),
        # A majority of its modality that sends nothing changes nothing for the third.
        (UNKNOWN, f"audio-0 0, audio-1 0, {THREE.format('.2')}", "audio-2 .9", "audio-2 1.1"),
        # Fewer than three by what they were sent.
        (UNKNOWN, "", "audio-0 19.9", "audio-0 20.1"),
        (UNKNOWN, "vision-0", "audio-0 19.9", "audio-0 20.1"),
        # A modality that moves more than the others is its own measure.
        (UNKNOWN, f"audio-0 2, audio-1 2, {THREE.format('.01')}", "audio-2 2", "audio-2 20.1"),
        # A majority does not move what was sent.
        (UNKNOWN, "audio-2", "", "audio-0 100, audio-1 100"),
        # Precisions by their median too, if they have a scale, and they may be small.
        (ABSOLUTE, "audio-0@2, audio-1@3", "audio-2@299", "audio-2@301"),
        (ABSOLUTE, "audio-0@2, audio-1@3", "audio-2@1e-9", ""),
        (RELATIVE, "audio-0@2, audio-1@3", "audio-2@301", ""),
        # Precisions of next to nothing do not make the third look large.
        (ABSOLUTE, SMALL, "audio-2@1", ""),
        # Decoders' posteriors always keep their scale.
        (SURE, "audio-0@@1, vision-0@@1", "vision-1@@99", "vision-1@@101"),
    ],
)
def test_an_update_is_measured_by_the_median(
    settings: tuple[str, ...], others: str, within: str, beyond: str
) -> None:
    assert refused(moved(f"{others},{within}"), *settings) == set()
    names = {str(each.key) for each in moved(beyond)}
    assert refused(moved(f"{others},{beyond}"), *settings) == names


#: What is sent is the last iterate, whose reach is known.
LAST = ("strategy=paper", "strategy.sampler.name=last", "client.weight_decay=0")


@pytest.mark.parametrize(
    ("optimizer", "steps", "far", "too_far"),
    [
        # .1 / sqrt(.001) = 3.16 rates a step for each of 4 numbers: 6.3 rates.
        ("adamw", 1000, 6.2, 6.4),
        # The gradient's norm is at most 1.
        ("sgd", 6000, 5.9, 6.1),
    ],
)
def test_what_training_can_do_passes(
    optimizer: str, steps: int, far: float, too_far: float
) -> None:
    settings = (*LAST, f"client.optimizer={optimizer}", "client.lr=1e-3")
    for norm, expected in ((far, set()), (too_far, {"audio-2"})):
        third = update("audio-2", norm, steps=steps)
        assert refused([*moved("audio-0, audio-1"), third], *settings) == expected


def test_adam_really_goes_no_farther() -> None:
    """The gradients that it goes farthest by: none for long, then a large one."""
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.0)
    for step in range(60):
        weight.grad = torch.full((4,), 0.0 if step < 40 else 10.0 ** (step - 40))
        optimizer.step()
    norm = (weight - 1).norm().item()
    assert norm > 1e-5 * 10
    third = update("audio-2", norm, 1e-6, steps=60)
    others = moved("audio-0 1e-6 1e-6, audio-1 1e-6 1e-6")
    assert refused([*others, third], *LAST, "client.lr=0.01") == set()


def test_rules_can_be_switched_off() -> None:
    off = [f"strategy.screening.{rule}_factor=null" for rule in ("norm", "precision")]
    uplinks = [update(f"audio-{n}", 10.0**n, scale=1e3**n) for n in range(5)]
    assert refused(uplinks, *ABSOLUTE, *off) == set()
    assert refused(uplinks, *ABSOLUTE) != set()


# --- Clipping ---------------------------------------------------------------------------------


def test_the_whole_change_is_scaled_down_to_the_norm_and_a_smaller_one_stays() -> None:
    def clipped(norm: float) -> Uplink:
        off = ("strategy.screening.norm_factor=null", f"strategy.screening.clip_norm={norm}")
        screening = Screening(SENT, config_with(*UNKNOWN, *off), {})
        screening.measure(large)
        return screening.screen(large)

    large = update("audio-0", 3.0, 4.0, scale=2.0)
    small = clipped(2.5)
    torch.testing.assert_close(small.encoder["e"].mean, 1 + torch.full((4,), 0.75))
    torch.testing.assert_close(small.decoder["d"].mean, 1 + torch.full((4,), 1.0))
    assert small.encoder["e"].precision.tolist() == [2.0] * 4
    assert clipped(5.1) is large


def test_of_two_norms_to_clip_to_the_smaller_counts() -> None:
    private = ("experiment=private", "strategy=fedavg", "privacy.clip=0.5")
    config = config_with(*private, "strategy.screening.clip_norm=0.1")
    screening, (given,) = Screening(SENT, config, {}), moved("audio-0 0 .3")
    screening.measure(given)
    change = screening.screen(given).decoder["d"].mean - SENT.decoder["d"]
    assert change.norm().item() == pytest.approx(0.1)


def test_a_change_that_exceeds_the_clip_of_private_clients_is_named() -> None:
    config = config_with("experiment=private", "strategy=fedavg", "privacy.clip=0.5")
    screening, within, beyond = Screening(SENT, config, {}), *moved("audio-0 .3 .4, audio-1 3 4")
    for each in (within, beyond):
        screening.measure(each)
    screening.screen(within)
    with pytest.raises(RejectedUpdateError, match=r"is 5, expected at most privacy\.clip=0\.5"):
        screening.screen(beyond)
    assert screening.medians() == {}


def test_medians_are_in_the_same_order_whoever_answers_first() -> None:
    screening = Screening(SENT, config_with(*ABSOLUTE), {})
    # The first is sure of its encoder alone, so that the decoder's precision is met last.
    for each in moved("vision-0@1, vision-1@1@1, vision-2@1@1, audio-0@1@1"):
        screening.measure(each)
    medians = list(screening.medians())
    assert {"decoder", "encoder/vision", "precision of decoder array 'd'"} <= {*medians}
    assert medians == sorted(medians)
