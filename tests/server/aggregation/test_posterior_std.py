"""Standard deviations against closed forms, and against the covariances that NumPy inverts."""

import math

import numpy as np
import pytest
import torch
from updates import uplink

from common.config import EncoderConfig, Scale, StrategyConfig
from common.messages import Uplink, no_numbers
from common.posterior import Form, Gaussian, Posterior
from common.structures import fit_gaussian
from common.structures.inputs import mapped_gaussian
from common.task import Task
from server.aggregation.hierarchy import sum_updates
from server.aggregation.posterior_std import MOST_CLIENTS, layer_std

SHAPE = (6, 5)


def reported(uplinks: list[Uplink]) -> dict[str, dict[str, float]]:
    summed = sum_updates(uplinks, StrategyConfig("x"), no_numbers(), Task.regression)
    summed.without_few(1)
    return summed.stds_by_client()


def diagonal(*precision: float) -> Gaussian:
    values = torch.tensor(precision)
    return Gaussian(torch.zeros_like(values), values, Form.diagonal)


def samples(count: int, deviation: float, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return deviation * torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def relative(structure: str, rho: float, given: torch.Tensor) -> Gaussian:
    config = EncoderConfig("pbea", structure, rho, Scale.relative)
    return fit_gaussian(given, config, received=torch.zeros(given.shape[1:]))


def std_of(*gaussians: Gaussian) -> float:
    """Return the standard deviation of a layer of a weight and, maybe, a bias."""
    names = ("a.weight", "a.bias")
    return layer_std(Posterior.of(dict(zip(names, gaussians, strict=False))))["a"]


def test_by_hand() -> None:
    # Variances 1 and 1/9: their harmonic mean is 1/5, as the directions known best count most.
    assert std_of(diagonal(1.0, 9.0)) == pytest.approx(math.sqrt(1 / 5))
    # 3 x 2 elements of precision 4 and 16 along axes that are turned by 45 degrees, and 3 of
    # precision 100: a layer is by its elements.
    weight = Gaussian(torch.zeros(3, 2, 1), torch.tensor([[10.0, 6.0], [6.0, 10.0]]), Form.row)
    expected = (9 / (3 * 4 + 3 * 16 + 300)) ** 0.5
    assert std_of(weight, diagonal(100, 100, 100)) == pytest.approx(expected)


@pytest.mark.parametrize("structure", ["row", "diagonal"])
def test_without_the_scale_what_is_round_has_std_one(structure: str) -> None:
    round_one = relative(structure, 0.3, samples(4000, 0.03))
    assert std_of(round_one) == pytest.approx(1, rel=0.02)
    # Half of the columns are sure: precisions 1 / rho and 1 / (rho + 2 (1 - rho)).
    stretched = samples(4000, 0.03, (6, 4)) * torch.tensor([0.0, 0.0, 1.0, 1.0])
    odd = relative(structure, 0.3, stretched)
    expected = ((1 / 0.3 + 1 / (0.3 + 0.7 * 2)) / 2) ** -0.5
    assert std_of(odd) == pytest.approx(expected, rel=0.02)


def test_of_inputs_it_is_one_over_their_root_mean_square() -> None:
    rng = np.random.default_rng(1)
    read = rng.normal(size=(50, 5)) * [1, 2, 3, 4, 5]
    moments = torch.from_numpy(read.T @ read / 50)
    gaussian = mapped_gaussian(torch.zeros(SHAPE), moments, 0.1)
    expected = 1 / math.sqrt((read**2).mean())
    assert std_of(gaussian) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("structure", ["low_rank", "inputs", None])
def test_without_a_precision_there_is_none(structure: str | None) -> None:
    merge = "average" if structure is None else "pbea"
    config = EncoderConfig(merge, structure or "row", 0.5)
    gaussian = fit_gaussian(samples(4, 0.1), config, received=torch.zeros(SHAPE))
    posterior = {"a.weight": gaussian}
    assert layer_std(Posterior.of(posterior)) == {}
    assert reported([uplink("audio-0", posterior, posterior)]) == {}


def test_clients_come_in_their_order_parts_keep_apart_and_figures_have_four_digits() -> None:
    one, other = {"x.weight": diagonal(4.0)}, {"x.weight": diagonal(0.25)}
    uplinks = [
        uplink("vision-0", one, {"x.weight": torch.zeros(1)}),
        uplink("audio-2", one, other),
        uplink("audio-10", {"x.weight": diagonal(3.0)}, {"x.weight": diagonal(3e-12)}),
    ]
    assert list(reported(uplinks).items()) == [
        ("audio-2", {"encoder.x": 0.5, "decoder.x": 2.0}),
        ("audio-10", {"encoder.x": 0.5774, "decoder.x": 577400.0}),
        ("vision-0", {"encoder.x": 0.5}),
    ]


def test_of_many_clients_each_modality_has_its_first() -> None:
    posterior, many = {"x": diagonal(4.0)}, {"audio": 100, "language": 3, "vision": 20}
    uplinks = [
        uplink(f"{name}-{part}", posterior, posterior)
        for name, count in many.items()
        for part in range(count)
    ]
    share = MOST_CLIENTS // 3
    assert list(reported(uplinks)) == [
        f"{name}-{part}" for name, count in many.items() for part in range(min(count, share))
    ]
    assert list(reported(uplinks[:MOST_CLIENTS])) == [f"audio-{n}" for n in range(MOST_CLIENTS)]
