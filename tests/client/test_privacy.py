"""What a client sends when its data are to stay hidden: a clipped change, noise, nothing else."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from client.privacy import protect
from common.clients import ClientKey
from common.config import PrivacyConfig, PrivacyRule
from common.messages import Downlink, Uplink
from common.posterior import Form, Gaussian

KEY = ClientKey("audio", 0)
SENT = Downlink(
    KEY,
    1,
    {"embed": torch.tensor([[1.0, 2.0]]), "standardise.mean": torch.zeros(2)},
    {"head": torch.tensor([3.0])},
    torch.zeros(2, dtype=torch.float64),
)
#: A change of (1, 2, 2), of norm 3.
UPDATE = Uplink(
    KEY,
    1,
    {"embed": Gaussian(torch.tensor([[2.0, 4.0]]), torch.eye(2), Form.row)},
    {"head": Gaussian(torch.tensor([5.0]))},
    12,
    0.7,
    torch.ones(6, dtype=torch.float64),
    torch.ones(9, dtype=torch.float64),
    4,
)


def means(uplink: Uplink) -> Tensor:
    return torch.cat([uplink.encoder["embed"].mean.flatten(), uplink.decoder["head"].mean])


def protected(rule: PrivacyRule, clip: float, seed: int = 0, update: Uplink = UPDATE) -> Uplink:
    config = PrivacyConfig(rule, clip, noise_multiplier=0.5)
    return protect(update, SENT, config, np.random.default_rng(seed).bytes)


def test_without_a_mechanism_nothing_changes() -> None:
    assert protect(UPDATE, SENT, PrivacyConfig()) is UPDATE


@pytest.mark.parametrize(
    ("clip", "expected"),
    [(1.5, [1.5, 3.0, 4.0]), (3.0, [2.0, 4.0, 5.0]), (99.0, [2.0, 4.0, 5.0])],
)
def test_encoder_and_decoder_are_clipped_together(clip: float, expected: list[float]) -> None:
    torch.testing.assert_close(means(protected(PrivacyRule.central, clip)), torch.tensor(expected))


def test_a_client_that_did_not_move_sends_what_it_received() -> None:
    still = replace(
        UPDATE,
        encoder={"embed": Gaussian(SENT.encoder["embed"])},
        decoder={"head": Gaussian(SENT.decoder["head"])},
    )
    sent = protected(PrivacyRule.central, 1.0, update=still)
    assert means(sent).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("rule", [PrivacyRule.central, PrivacyRule.local])
def test_nothing_else_that_depends_on_the_data_leaves(rule: PrivacyRule) -> None:
    sent = protected(rule, 1.5)
    assert sent.train_loss == 0.0
    assert (
        sent.calibration_sums.tolist() == [0.0] * 6 and sent.label_agreement.tolist() == [0.0] * 9
    )
    assert all(each.precision is None for each in (*sent.encoder.values(), *sent.decoder.values()))
    assert (sent.key, sent.round, sent.examples, sent.steps) == (KEY, 1, 12, 4)
    assert sent.encoder["embed"].mean.dtype == torch.float32


def test_local_noise_has_the_deviation_that_it_says() -> None:
    clip, draws = 1.5, 2000
    center = means(protected(PrivacyRule.central, clip))
    noise = torch.stack(
        [means(protected(PrivacyRule.local, clip, seed)) - center for seed in range(draws)]
    )
    expected = 0.5 * clip
    assert abs(noise.std().item() / expected - 1) < 5 / math.sqrt(2 * 3 * draws)
    assert (noise.mean(dim=0).abs() < 5 * expected / math.sqrt(draws)).all()
    assert torch.corrcoef(noise.T).triu(1).abs().max() < 0.12
