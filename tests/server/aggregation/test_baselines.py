"""Every baseline, from its file in ``conf/`` to the new weights: by hand, and where it ends.

The model has one weight in each encoder and one in the decoder, all 0 at first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from memory_federation import config_with
from torch import Tensor
from updates import uplink

from common.config import StrategyConfig
from common.messages import Uplink
from common.model.ha_fedformer import ModelArrays, join_arrays, split_arrays
from server.aggregation.client_weights import client_weight
from server.aggregation.hierarchy import RoundSum, merge_round
from server.aggregation.server_optimizer import OptimizerState, step

START = ModelArrays(
    {"audio": {"w": torch.zeros(1)}, "vision": {"w": torch.zeros(1)}}, {"head": torch.zeros(1)}
)


def strategy(name: str) -> StrategyConfig:
    """Read a strategy, without its noise."""
    quiet = ("strategy.fedatt.noise=0", "strategy.decoder.noise=0")
    return config_with(f"strategy={name}", *quiet).strategy


def scalar(name: str, n: int, steps: int, w: float, head: float) -> Uplink:
    parts = {"w": torch.tensor([w])}, {"head": torch.tensor([head])}
    return uplink(name, *parts, examples=n, steps=steps)


ROUND = [
    scalar("audio-0", n=1, steps=2, w=2.0, head=1.0),
    scalar("audio-1", n=3, steps=4, w=6.0, head=5.0),
    scalar("vision-0", n=4, steps=8, w=-1.0, head=3.0),
]


@dataclass
class Server:
    """What is kept between rounds."""

    config: StrategyConfig
    parts: ModelArrays = START
    state: OptimizerState = field(default_factory=OptimizerState)

    def merge(self, uplinks: list[Uplink]) -> dict[str, Tensor]:
        """Do what `server.strategy` does with a round."""
        total = RoundSum(self.config)
        for each in uplinks:
            total = total.add(each, client_weight(each, self.config.weights, trusted=1.0))
        result = merge_round(total, self.parts, torch.Generator())
        current = join_arrays(self.parts)
        stepped, self.state = step(
            current,
            join_arrays(result.parts),
            self.state,
            self.config.server_optimizer,
            join_arrays(result.change_scales),
        )
        self.parts = split_arrays(current | stepped)
        return stepped


def weights(arrays: Mapping[str, Tensor]) -> tuple[float, ...]:
    """Return the encoders of audio and of vision, and the decoder."""
    names = ("encoders.audio.w", "encoders.vision.w", "decoder.head")
    return tuple(arrays[name].item() for name in names)


def softmax_mean(*values: float) -> float:
    """Return the mean of numbers weighed by their own exponentials."""
    masses = [math.exp(abs(value)) for value in values]
    return sum(m * v for m, v in zip(masses, values, strict=True)) / sum(masses)


def adam(change: float) -> float:
    """Return the first step of FedAdam, whose v begins at tau^2."""
    tau = strategy("fedadam").server_optimizer.tau
    return 0.003 * 0.1 * change / (math.sqrt(0.99 * tau**2 + 0.01 * change**2) + 0.001)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fedavg", (5.0, -1.0, (1 + 15 + 12) / 8)),
        ("fedprox", (5.0, -1.0, 3.5)),  # its term is in the local loss
        ("fedavgm", (0.7 * 5, 0.7 * -1, 0.7 * 3.5)),
        ("fedadam", tuple(map(adam, (5.0, -1.0, 3.5)))),
        # Wang et al. 2020, tau (sum p D / tau_i): (.25 2 + .75 4) (.25 2 / 2 + .75 6 / 4), and for
        # the head (1 2 + 3 4 + 4 8) / 8 (1/2 + 15/4 + 12/8) / 8.
        ("fednova", (3.5 * 1.375, -1.0, 5.75 * 5.75 / 8)),
        ("fedatt", (1.2 * softmax_mean(2, 6), -1.2, 1.2 * softmax_mean(1, 5, 3))),
        ("median", (4.0, -1.0, 3.0)),
        ("trimmed_mean", (4.0, -1.0, 3.0)),  # none of two is cut off, one of three at either end
        ("pbea", (5.0, -1.0, 3.5)),
        ("cmda", (5.0, -1.0, (4 + 3) / 2)),
        ("hierarchical", (5.0, -1.0, (4 + 3) / 2)),
        ("few_rounds", (5.0, -1.0, 3.5)),
    ],
)
def test_one_round_by_hand(name: str, expected: tuple[float, ...]) -> None:
    assert weights(Server(strategy(name)).merge(ROUND)) == pytest.approx(expected, abs=1e-6)


# --- FedNova ----------------------------------------------------------------------------------


#: Of clients with losses h / 2 (w - m)^2, n items and plain SGD's steps at a small rate.
H, M, N, STEPS = np.array([[1, 3, 0.5], [-2, 1, 4], [10, 30, 20], [2, 5, 30]])
RATE = 1e-3


def fixed_point(name: str) -> float:
    """Find the weight that a round maps to itself; the round is an affine map."""

    def after(w: float) -> float:
        trained = M + (1 - RATE * H) ** STEPS * (w - M)
        uplinks = [
            scalar(f"audio-{i}", int(n), int(steps), trained[i], 0.0)
            for i, (n, steps) in enumerate(zip(N, STEPS, strict=True))
        ]
        start = ModelArrays({"audio": {"w": torch.tensor([w])}}, START.decoder)
        return Server(strategy(name), start).merge(uplinks)["encoders.audio.w"].item()

    return after(0.0) / (1 - (after(1.0) - after(0.0)))


def test_fednova_ends_at_the_optimum_where_fedavg_counts_steps_as_items() -> None:
    optimum, by_steps = ((n * H) @ M / (n @ H) for n in (N, N * STEPS))
    assert abs(by_steps - optimum) > 1
    # But for the rate, which is not 0 and moves either a little.
    assert fixed_point("fedavg") == pytest.approx(by_steps, abs=0.05)
    assert fixed_point("fednova") == pytest.approx(optimum, abs=0.05)
