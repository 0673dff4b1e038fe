"""Who is out of all proportion to the others, and what becomes of the change."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
TEN = ("strategy=paper", "strategy.screening.norm_factor=10")
RELATIVE = (*TEN, "strategy.encoder.structure=diagonal")
ABSOLUTE = (*RELATIVE, "strategy.encoder.scale=absolute")
SURE = (*TEN, "strategy.decoder.merge=posterior")
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
    examples: int = 12,
    scale: float | None = None,
    decoder_scale: float | None = None,
) -> Uplink:
    """Move encoder and decoder by a norm each."""
    size = len(SENT.encoders[name.partition("-")[0]]["e"])
    parts = {"e": gaussian(size, encoder, scale)}, {"d": gaussian(4, decoder, decoder_scale)}
    return uplink(name, encoder=parts[0], decoder=parts[1], examples=examples)


def out_of_proportion(uplinks: Iterable[Uplink], *settings: str) -> set[str]:
    """Say who is scaled down, or refused, after a former round of the same updates."""
    config = config_with(*settings)
    former = Screening(SENT, config, {})
    for each in uplinks:
        former.measure(each)
    screening, found = Screening(SENT, config, former.medians()), set[str]()
    for each in uplinks:
        screening.measure(each)
        try:
            same = screening.screen(each) is each
        except RejectedUpdateError:
            found.add(str(each.key))
        else:
            assert same == (each.key not in screening.clipped)
    return found | set(map(str, screening.clipped))


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
        (TEN, "audio-0, audio-1 .3", "audio-2 2.9", "audio-2 3.1"),
        # Decoders by the median of all.
        (TEN, "audio-0 .1 .1, vision-0 .2 .2", "vision-1 .2 1.9", "vision-1 .2 2.1"),
        # A lone client by the root mean square of all: .1 over 4 numbers is as much as .2 over 16.
        (TEN, "audio-0, audio-1, audio-2", "vision-0 1.9", "vision-0 2.1"),
        # A majority of its modality that sends nothing changes nothing for the third.
        (TEN, f"audio-0 0, audio-1 0, {THREE.format('.2')}", "audio-2 .9", "audio-2 1.1"),
        # Fewer than three by what they were sent.
        (TEN, "", "audio-0 19.9", "audio-0 20.1"),
        (TEN, "vision-0", "audio-0 19.9", "audio-0 20.1"),
        # A modality that moves more than the others is its own measure.
        (TEN, f"audio-0 2, audio-1 2, {THREE.format('.01')}", "audio-2 2", "audio-2 20.1"),
        # A majority does not move what was sent.
        (TEN, "audio-2", "", "audio-0 100, audio-1 100"),
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
    assert out_of_proportion(moved(f"{others},{within}"), *settings) == set()
    names = {str(each.key) for each in moved(beyond)}
    assert out_of_proportion(moved(f"{others},{beyond}"), *settings) == names


def test_rules_can_be_switched_off() -> None:
    off = [f"strategy.screening.{rule}_factor=null" for rule in ("norm", "precision")]
    uplinks = [update(f"audio-{n}", 10.0**n, scale=1e3**n) for n in range(5)]
    assert out_of_proportion(uplinks, *ABSOLUTE, *off) == set()
    assert out_of_proportion(uplinks, *ABSOLUTE) != set()


# --- Scaling down -----------------------------------------------------------------------------


def test_a_part_that_moves_too_far_is_scaled_down_to_what_is_usual_and_the_other_stays() -> None:
    sent = [*moved("audio-0 .1 .1, vision-0 .2 .1"), update("audio-1", 0.1, 5.0, scale=2.0)]
    screening = Screening(SENT, config_with("strategy.screening.norm_factor=3"), {})
    for each in sent:
        screening.measure(each)
    screening.learn()
    *others, small = map(screening.screen, sent)
    assert all(one is other for one, other in zip(others, sent, strict=False))
    assert screening.clipped == {sent[-1].key: pytest.approx(50)}
    torch.testing.assert_close(small.decoder["d"].mean, 1 + torch.full((4,), 0.15))
    assert small.encoder is sent[-1].encoder


@settings(deadline=None)
@given(st.floats(1e-30, 1e30))
def test_no_change_is_farther_than_the_factor_times_the_median(far: float) -> None:
    large = update("audio-2", far, far)
    screening = Screening(SENT, config_with("strategy.screening.norm_factor=3"), {})
    for each in (*moved("audio-0, audio-1 .3 .2"), large):
        screening.measure(each)
    screening.learn()
    kept = screening.screen(large)
    encoder = kept.encoder["e"].mean - SENT.encoders["audio"]["e"]
    decoder = kept.decoder["d"].mean - SENT.decoder["d"]
    assert max(encoder.norm().item(), decoder.norm().item()) <= 1.001 * 3 * 0.3


def test_the_whole_change_is_scaled_down_to_the_norm_and_a_smaller_one_stays() -> None:
    def clipped(norm: float) -> Uplink:
        off = ("strategy.screening.norm_factor=null", f"strategy.screening.clip_norm={norm}")
        screening = Screening(SENT, config_with(*TEN, *off), {})
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
    screening, (small,) = Screening(SENT, config, {}), moved("audio-0 0 .3")
    screening.measure(small)
    change = screening.screen(small).decoder["d"].mean - SENT.decoder["d"]
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
