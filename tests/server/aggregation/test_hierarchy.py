"""A round as a sum: any order and grouping, FedAvg by configuration, what is reported."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from updates import in_any_tree, points, uplink

from common.clients import ClientKey
from common.config import DecoderConfig, EncoderConfig, StrategyConfig
from common.messages import Uplink
from common.model.ha_fedformer import ModelArrays, join_arrays
from common.posterior import Form, Gaussian, Posterior
from server.aggregation.hierarchy import MergedRound, RoundSum, merge_round

PBEA = StrategyConfig("x", encoder=EncoderConfig("pbea"))
FEDAVG, CMDA, NOISY, SURE = (
    replace(PBEA, decoder=decoder)
    for decoder in (
        *(DecoderConfig("average"), DecoderConfig("cmda", noise=0.0)),
        *(DecoderConfig("cmda", noise=0.1), DecoderConfig("posterior")),
    )
)

WIDTHS = {"audio": 2, "language": 3, "vision": 4}
KEYS = [ClientKey(m, part) for m in ("audio", "language", "vision") for part in range(2)]


def update(key: ClientKey) -> Uplink:
    """Make the reply of one client; a modality's width is its own."""
    rng = np.random.default_rng([len(key.modality), key.part])
    width = WIDTHS[key.modality]
    mean = torch.from_numpy(rng.normal(size=(3, width))).float()
    spread = rng.normal(size=(width, width))
    precision = torch.from_numpy(spread @ spread.T + np.eye(width)).float()
    return uplink(
        str(key),
        encoder={"embed": Gaussian(mean, precision, Form.row)},
        decoder={"head": torch.from_numpy(rng.normal(size=(2, 3))).float()},
        examples=int(rng.integers(5, 60)),
        train_loss=float(rng.uniform(0.1, 2)),
        calibration_sums=torch.from_numpy(rng.normal(size=6)),
        steps=int(rng.integers(1, 40)),
    )


#: What the clients started from.
EMBEDS = {name: torch.full((3, width), 0.3) for name, width in WIDTHS.items()}
HEAD = torch.arange(6.0).view(2, 3)


def total_of(uplinks: list[Uplink], config: StrategyConfig) -> RoundSum:
    total = RoundSum(config)
    for each in uplinks:
        total = total.add(each)
    return total


def merged(total: RoundSum, seed: int = 0) -> MergedRound:
    encoders = {name: {"embed": EMBEDS[name]} for name in total.modalities}
    generator = torch.Generator().manual_seed(seed)
    return merge_round(total, ModelArrays(encoders, {"head": HEAD}), generator)


@given(data=st.data(), config=st.sampled_from([FEDAVG, CMDA, NOISY]))
@settings(max_examples=25, deadline=None)
def test_order_and_grouping_do_not_matter(data: st.DataObject, config: StrategyConfig) -> None:
    uplinks = [update(key) for key in KEYS[: data.draw(st.integers(2, len(KEYS)))]]
    empty, straight = RoundSum(config), total_of(uplinks, config)
    total = in_any_tree(data, [empty, *(empty.add(each) for each in uplinks)])
    one, two = (join_arrays(merged(each).parts) for each in (total, straight))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    for name, modality in total.modalities.items():
        own = [each for each in uplinks if each.key.modality == name]
        assert modality.clients == len(own)
        assert modality.examples == sum(each.examples for each in own)
        assert modality.loss == pytest.approx(sum(u.examples * u.train_loss for u in own))
        seen = sum(each.calibration_sums for each in own)
        torch.testing.assert_close(modality.calibration_sums, seen)


def test_decoders_with_precisions_merge_by_them_across_modalities() -> None:
    rng = np.random.default_rng(3)
    uplinks, left, right = [], np.zeros((3, 3)), np.zeros((2, 3))
    for each in map(update, KEYS):
        spread, mean = rng.normal(size=(3, 3)), each.decoder["head"].mean
        precision = spread @ spread.T + np.eye(3)
        head = Gaussian(mean, torch.from_numpy(precision), Form.row)
        uplinks.append(replace(each, decoder=Posterior.of({"head": head})))
        left += each.examples * precision
        right += each.examples * mean.double().numpy() @ precision
    found = merged(total_of(uplinks, SURE)).parts.decoder["head"].numpy()
    np.testing.assert_allclose(found, np.linalg.solve(left, right.T).T, atol=1e-5)


def test_result_is_bitwise_the_same_for_a_seed_whichever_modality_came_first() -> None:
    forward = total_of([update(key) for key in KEYS], NOISY)
    backward = RoundSum(NOISY, dict(reversed(forward.modalities.items())))
    for total in (forward, backward):
        assert list(merged(total).parts.encoders) == ["audio", "language", "vision"]
    one, two, other = (
        join_arrays(merged(total, seed).parts)
        for total, seed in ((forward, 7), (backward, 7), (forward, 8))
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["decoder.head"], other["decoder.head"])


@pytest.mark.parametrize("config", [FEDAVG, CMDA])
def test_a_round_of_nobody_or_of_decoders_that_differ_raises(config: StrategyConfig) -> None:
    one = update(ClientKey("audio", 0))
    other = replace(update(ClientKey("vision", 0)), decoder=points(head=torch.ones(2, 1)))
    for uplinks, words in (([], r"no (clients|decoders)"), ([one, other], "'head'")):
        with pytest.raises(ValueError, match=words):
            merged(total_of(uplinks, config))
