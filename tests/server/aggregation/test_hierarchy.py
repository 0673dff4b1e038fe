"""A round as a sum: any order and grouping, FedAvg by configuration, what is reported."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.clients import ClientKey
from common.config import DecoderConfig, DecoderMerge, EncoderConfig, StrategyConfig
from common.messages import Uplink
from common.model.ha_fedformer import ModelArrays
from common.posterior import Form, Gaussian, Posterior
from server.aggregation.hierarchy import MergedRound, RoundSum, merge_round

FEDAVG = StrategyConfig(
    "fedavg", encoder=EncoderConfig("pbea"), decoder=DecoderConfig(merge=DecoderMerge.average)
)
CMDA = StrategyConfig(
    "hierarchical", encoder=EncoderConfig("pbea"), decoder=DecoderConfig("cmda", noise=0.0)
)
NOISY = StrategyConfig(
    "hierarchical", encoder=EncoderConfig("pbea"), decoder=DecoderConfig("cmda", noise=0.1)
)

WIDTHS = {"audio": 2, "language": 3, "vision": 4}
KEYS = [ClientKey(m, part) for m in ("audio", "language", "vision") for part in range(2)]


def uplink(key: ClientKey, *, identity: bool = False) -> Uplink:
    """Make the reply of one client; a modality's width is its own."""
    rng = np.random.default_rng([len(key.modality), key.part])
    width = WIDTHS[key.modality]
    mean = torch.from_numpy(rng.normal(size=(3, width))).float()
    spread = rng.normal(size=(width, width))
    precision = torch.from_numpy(spread @ spread.T + np.eye(width)).float()
    embed = Gaussian(mean) if identity else Gaussian(mean, precision, Form.row)
    return Uplink(
        key,
        1,
        Posterior.of({"embed": embed}),
        Posterior.of({"head": Gaussian(torch.from_numpy(rng.normal(size=(2, 3))).float())}),
        examples=int(rng.integers(5, 60)),
        train_loss=float(rng.uniform(0.1, 2)),
        calibration_sums=torch.from_numpy(rng.normal(size=6)),
        label_agreement=torch.zeros(2, dtype=torch.float64),
        steps=int(rng.integers(1, 40)),
    )


def current_of(modalities: Iterable[str]) -> ModelArrays:
    """Make what the clients started from."""
    rng = np.random.default_rng(9)
    embeds = {name: torch.from_numpy(rng.normal(size=(3, WIDTHS[name]))) for name in WIDTHS}
    encoders = {name: {"embed": embeds[name].float()} for name in modalities}
    return ModelArrays(encoders, {"head": torch.from_numpy(rng.normal(size=(2, 3))).float()})


def total_of(uplinks: list[Uplink], config: StrategyConfig) -> RoundSum:
    total = RoundSum(config)
    for each in uplinks:
        total = total.add(each)
    return total


def merged(total: RoundSum, seed: int = 0) -> MergedRound:
    generator = torch.Generator().manual_seed(seed)
    return merge_round(total, current_of(total.modalities), generator)


def arrays_of(result: MergedRound) -> dict[str, Tensor]:
    flat = {f"decoder.{name}": array for name, array in result.parts.decoder.items()}
    for modality, encoder in result.parts.encoders.items():
        flat |= {f"{modality}.{name}": array for name, array in encoder.items()}
    return flat


def assert_same_round(left: RoundSum, right: RoundSum) -> None:
    one, two = arrays_of(merged(left)), arrays_of(merged(right))
    assert one.keys() == two.keys()
    for name, array in one.items():
        torch.testing.assert_close(array, two[name], rtol=1e-5, atol=1e-5)
    assert left.modalities.keys() == right.modalities.keys()
    for name, modality in left.modalities.items():
        other = right.modalities[name]
        assert (modality.examples, modality.clients) == (other.examples, other.clients)
        assert modality.loss == pytest.approx(other.loss)
        torch.testing.assert_close(modality.calibration_sums, other.calibration_sums)


@given(data=st.data(), config=st.sampled_from([FEDAVG, CMDA, NOISY]))
@settings(max_examples=25, deadline=None)
def test_order_and_grouping_do_not_matter(data: st.DataObject, config: StrategyConfig) -> None:
    uplinks = [uplink(key) for key in KEYS[: data.draw(st.integers(2, len(KEYS)))]]
    sums = [RoundSum(config).add(each) for each in data.draw(st.permutations(uplinks))]
    while len(sums) > 1:
        at = data.draw(st.integers(0, len(sums) - 2))
        sums[at : at + 2] = [sums[at].merge(sums[at + 1])]
    assert_same_round(sums[0], total_of(uplinks, config))


def test_empty_round_is_neutral() -> None:
    total = total_of([uplink(key) for key in KEYS], CMDA)
    assert_same_round(RoundSum(CMDA).merge(total), total)
    assert_same_round(total.merge(RoundSum(CMDA)), total)


def test_fedavg_is_the_average_by_examples() -> None:
    uplinks = [uplink(key, identity=True) for key in KEYS]
    result = merged(total_of(uplinks, FEDAVG))
    examples = [each.examples for each in uplinks]
    heads = np.stack([each.decoder["head"].mean.double().numpy() for each in uplinks])
    np.testing.assert_allclose(
        result.parts.decoder["head"].numpy(),
        np.average(heads, axis=0, weights=examples),
        atol=1e-6,
    )
    for modality in ("audio", "language", "vision"):
        own = [each for each in uplinks if each.key.modality == modality]
        means = np.stack([each.encoder["embed"].mean.double().numpy() for each in own])
        np.testing.assert_allclose(
            result.parts.encoders[modality]["embed"].numpy(),
            np.average(means, axis=0, weights=[each.examples for each in own]),
            atol=1e-6,
        )


def test_fedavg_reports_each_modality_s_share_of_the_examples() -> None:
    uplinks = [uplink(key) for key in KEYS]
    shares = merged(total_of(uplinks, FEDAVG)).decoder_weights["head"]
    everyone = sum(each.examples for each in uplinks)
    for modality, share in shares.items():
        own = sum(each.examples for each in uplinks if each.key.modality == modality)
        assert share == pytest.approx(own / everyone)
    assert sum(shares.values()) == pytest.approx(1)


def test_row_posteriors_merge_by_their_precisions() -> None:
    uplinks = [uplink(ClientKey("language", part)) for part in range(3)]
    left, right = np.zeros((3, 3)), np.zeros((3, 3))
    for each in uplinks:
        gaussian = each.encoder["embed"]
        assert gaussian.precision is not None
        precision = each.examples * gaussian.precision.double().numpy()
        left += precision
        right += gaussian.mean.double().numpy() @ precision
    found = merged(total_of(uplinks, CMDA)).parts.encoders["language"]["embed"].numpy()
    np.testing.assert_allclose(found, np.linalg.solve(left, right.T).T, atol=1e-5)


def test_decoders_with_precisions_merge_by_them_across_modalities() -> None:
    rng = np.random.default_rng(3)
    uplinks, left, right = [], np.zeros((3, 3)), np.zeros((2, 3))
    for each in map(uplink, KEYS):
        spread, mean = rng.normal(size=(3, 3)), each.decoder["head"].mean
        precision = spread @ spread.T + np.eye(3)
        head = Gaussian(mean, torch.from_numpy(precision), Form.row)
        uplinks.append(replace(each, decoder=Posterior.of({"head": head})))
        left += each.examples * precision
        right += each.examples * mean.double().numpy() @ precision
    sure = StrategyConfig(
        "few_rounds",
        encoder=EncoderConfig("pbea"),
        decoder=DecoderConfig(merge=DecoderMerge.posterior),
    )
    found = merged(total_of(uplinks, sure)).parts.decoder["head"].numpy()
    np.testing.assert_allclose(found, np.linalg.solve(left, right.T).T, atol=1e-5)


def test_cmda_of_two_modalities_is_the_mean_of_their_averages() -> None:
    uplinks = [uplink(key) for key in KEYS[:4]]
    averages = []
    for modality in ("audio", "language"):
        own = [each for each in uplinks if each.key.modality == modality]
        heads = np.stack([each.decoder["head"].mean.double().numpy() for each in own])
        averages.append(np.average(heads, axis=0, weights=[each.examples for each in own]))
    result = merged(total_of(uplinks, CMDA))
    found = result.parts.decoder["head"].numpy()
    np.testing.assert_allclose(found, np.mean(averages, axis=0), atol=1e-6)
    assert result.decoder_weights["head"] == pytest.approx({"audio": 0.5, "language": 0.5})
    by_examples = merged(total_of(uplinks, FEDAVG)).parts.decoder["head"].numpy()
    assert np.abs(found - by_examples).max() > 1e-3


def test_modality_without_reply_is_absent() -> None:
    for config in (FEDAVG, CMDA):
        result = merged(total_of([uplink(key) for key in KEYS[:4]], config))
        assert set(result.parts.encoders) == {"audio", "language"}
        assert all(
            set(shares) == {"audio", "language"} for shares in result.decoder_weights.values()
        )


def test_losses_evidence_and_counts_are_summed() -> None:
    uplinks = [uplink(ClientKey("vision", part)) for part in range(4)]
    total = total_of(uplinks, FEDAVG).modalities["vision"]
    assert total.loss == pytest.approx(sum(each.examples * each.train_loss for each in uplinks))
    assert total.examples == sum(each.examples for each in uplinks)
    assert total.clients == 4
    torch.testing.assert_close(
        total.calibration_sums, sum(each.calibration_sums for each in uplinks)
    )


def test_result_is_bitwise_the_same_for_a_seed_whichever_modality_came_first() -> None:
    forward = total_of([uplink(key) for key in KEYS], NOISY)
    backward = RoundSum(NOISY, dict(reversed(forward.modalities.items())))
    for total in (forward, backward):
        assert list(merged(total).parts.encoders) == ["audio", "language", "vision"]
    one, two, other = (
        arrays_of(merged(total, seed))
        for total, seed in ((forward, 7), (backward, 7), (forward, 8))
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["decoder.head"], other["decoder.head"])


@pytest.mark.parametrize("config", [FEDAVG, CMDA])
def test_round_without_a_client_raises(config: StrategyConfig) -> None:
    with pytest.raises(ValueError, match=r"no (clients|decoders)"):
        merged(RoundSum(config))


def test_decoders_that_differ_between_modalities_raise() -> None:
    one = uplink(ClientKey("audio", 0))
    other = replace(
        one, key=ClientKey("vision", 0), decoder=Posterior.of({"head": Gaussian(torch.ones(2, 1))})
    )
    for config in (FEDAVG, CMDA):
        with pytest.raises(ValueError, match="'head'"):
            merged(total_of([one, other], config))
