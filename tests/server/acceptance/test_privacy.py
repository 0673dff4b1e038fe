"""The server's noise has the deviation that the accounting takes for granted."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.supercore.differential_privacy import compute_stdv
from tiny_runs import TINY
from torch import Tensor

from common.config import Config, PrivacyConfig, PrivacyRule, compose
from common.errors import UserError
from common.model.ha_fedformer import ModelArrays
from server.acceptance.privacy import (
    NOT_COVERED,
    add_noise,
    gaussian_delta,
    gaussian_epsilon,
    privacy_spent,
)
from server.app import prepare
from server.runtimes.local import run_locally


def test_averages_get_the_noise_of_their_clients() -> None:
    """The deviation is that of Flower's `compute_stdv`, for each average's own clients."""
    config = PrivacyConfig(PrivacyRule.central, clip=2.0, noise_multiplier=0.7)
    averages = ModelArrays(
        {name: {"e": torch.zeros(3)} for name in ("audio", "vision")}, {"d": torch.zeros(2, 2)}
    )
    source = np.random.default_rng(0).bytes
    draws: dict[str, list[Tensor]] = {"audio": [], "vision": [], "decoder": []}
    for _ in range(1500):
        noisy = add_noise(averages, {"audio": 3, "vision": 1}, config, source)
        for modality in ("audio", "vision"):
            draws[modality].append(noisy.encoders[modality]["e"])
        draws["decoder"].append(noisy.decoder["d"])
    for name, count in (("audio", 3), ("vision", 1), ("decoder", 4)):
        noise = torch.stack(draws[name])
        expected = compute_stdv(config.noise_multiplier, config.clip, count)
        assert abs(noise.std().item() / expected - 1) < 5 / math.sqrt(2 * noise.numel())
        assert noise.dtype == torch.float32


# --- Accounting -------------------------------------------------------------------------------


def test_delta_is_that_of_the_closed_form() -> None:
    # Phi(-1/2) - e Phi(-3/2) of a table, and the total variation 2 Phi(mu/2) - 1 at epsilon 0.
    assert gaussian_delta(1.0, 1.0) == pytest.approx(0.3085375 - math.e * 0.0668072, abs=1e-6)
    assert gaussian_delta(2.0, 0.0) == pytest.approx(2 * 0.8413447 - 1, abs=1e-6)


@pytest.mark.parametrize("mu", [0.01, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_epsilon_is_exact_and_below_what_renyi_gives(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    renyi = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    assert 0 <= epsilon <= renyi
    if epsilon > 0:
        assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-6)
    # The classical calibration holds for epsilon below 1 only (Dwork and Roth 2014, theorem A.1).
    classical = mu * math.sqrt(2 * math.log(1.25 / delta))
    if classical < 1:
        assert epsilon < classical


def test_epsilon_is_that_of_a_published_accountant() -> None:
    """Google's dp-accounting 0.6.0, at 1e-5: by loss distributions; by RDP, which Flower wraps."""
    for multiplier, rounds, numerical, renyi in (
        (10, 10, 1.19937, 1.30850),
        (1, 1, 4.37718, 4.72851),
        (2, 20, 11.48002, 12.30169),
        (0.5, 20, 77.33009, 81.11631),
    ):
        epsilon = gaussian_epsilon(math.sqrt(rounds) / multiplier, 1e-5)
        assert epsilon == pytest.approx(numerical, abs=2e-5)
        assert epsilon < renyi


def private(*overrides: str) -> Config:
    return compose(Config, ["experiment=private", *overrides])


def test_what_is_spent_grows_with_the_rounds_and_says_what_it_is_of() -> None:
    assert privacy_spent(compose(Config, []), 5) is None
    config = private("privacy.noise_multiplier=2", "privacy.delta=1e-6")
    first, ninth = privacy_spent(config, 1), privacy_spent(config, 9)
    assert first["epsilon"] == pytest.approx(gaussian_epsilon(0.5, 1e-6))
    assert ninth["epsilon"] == pytest.approx(gaussian_epsilon(1.5, 1e-6))
    assert ninth["epsilon_replaced"] == pytest.approx(gaussian_epsilon(3.0, 1e-6))
    assert (ninth["unit"], ninth["rounds"], ninth["delta"]) == ("client", 9, 1e-6)
    assert ninth["neighbours"] == "a client's data left out" and ninth["trusted"] == "the server"
    assert ninth["not_covered"] == list(NOT_COVERED)
    assert json.loads(json.dumps(ninth)) == ninth
    # Local privacy is of any two data sets.
    local = privacy_spent(private("privacy=local", "privacy.noise_multiplier=2"), 4)
    assert local["epsilon"] == local["epsilon_replaced"]
    assert local["epsilon"] == pytest.approx(gaussian_epsilon(2.0, 1e-5))
    assert local["trusted"] == "nobody"


# --- Configuration ----------------------------------------------------------------------------


def test_what_the_mechanism_needs_is_asked_for_by_name() -> None:
    for override, needed in (
        ("strategy=pooled", "strategy.setting=federated"),
        ("strategy=pbea", "strategy.sampler.name=last"),
        ("strategy=median", "strategy.encoder.merge=average"),
        ("strategy=cmda", "strategy.decoder.merge=average"),
        ("strategy.weights=agreement", "strategy.weights=uniform"),
        ("strategy.normalise_steps=true", "strategy.normalise_steps=false"),
        ("strategy.linear=true", "strategy.linear=false"),
        ("fusion=auto", "fusion.name=mean"),
        ("runtime.min_clients=2", "runtime.min_clients=1"),
    ):
        for rule in ("central", "local"):
            with pytest.raises(UserError, match=f"privacy={rule} needs {needed}, and the run has"):
                private(f"privacy={rule}", override)


# --- Whole runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["central", "local"])
def test_a_private_run_merges_everyone_and_reveals_no_figures(tmp_path: Path, rule: str) -> None:
    small = (f"privacy={rule}", "privacy.clip=.5", "privacy.noise_multiplier=.1")
    runs = [prepare(private(*TINY, *small), tmp_path / name) for name in ("first", "again")]
    for run in runs:
        run_locally(run)
    for record in runs[0].records:
        assert record.rejected == []
        assert record.clients == {"language": 2, "audio": 2, "vision": 2}
        assert set(record.train_loss.values()) == {0.0}
        assert list(record.fusion_weights.values()) == pytest.approx([1 / 3] * 3)
    # The noise does not follow from the seed.
    assert runs[0].records[0].validation != runs[1].records[0].validation
