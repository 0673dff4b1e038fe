"""The server's step from the current model to the merged one (Reddi et al. 2021, FedOpt).

With the change D = merged - current of a round and the rate lr:

- ``sgd``: W <- W + lr D; at rate 1 the merged model itself, FedAvg;
- ``momentum``: m <- b m + D, W <- W + lr m (FedAvgM, Hsu et al. 2019);
- ``adam``: m <- b m + (1-b) D, v <- b2 v + (1-b2) D^2, W <- W + lr m / (sqrt(v) + tau) (FedAdam),
  with v = tau^2 before the first round.

An array that is not in a round, of a modality that did not reply, keeps its moments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.config import ServerOptimizer, ServerOptimizerConfig

Arrays = Mapping[str, Tensor]
_ONE = torch.tensor(1.0)


@dataclass(frozen=True)
class OptimizerState:
    """What the server remembers of former rounds, float64: array name to m, and to v."""

    first: Arrays = field(default_factory=dict)
    second: Arrays = field(default_factory=dict)


def step(
    current: Arrays,
    merged: Arrays,
    state: OptimizerState,
    config: ServerOptimizerConfig,
    scales: Arrays | None = None,
) -> tuple[dict[str, Tensor], OptimizerState]:
    """Make one step; return the new arrays, float32, those of `merged` only, and the next state.

    `current` is the model before the round. `scales` are factors () on the change of arrays by
    name, 1 where one is not named; see `server.aggregation.client_weights.StepSums`.
    """
    if config.name is ServerOptimizer.sgd and config.lr == 1.0 and not scales:
        return dict(merged), state
    stepped: dict[str, Tensor] = {}
    first, second = dict(state.first), dict(state.second)
    for name, target in merged.items():
        start = current[name].double()
        change = (scales or {}).get(name, _ONE) * (target.double() - start)
        if config.name is ServerOptimizer.momentum:
            change = first[name] = config.momentum * _moment(first, name, start) + change
        elif config.name is ServerOptimizer.adam:
            first[name] = _average(config.momentum, _moment(first, name, start), change)
            second[name] = _average(
                config.beta2, _moment(second, name, start, config.tau**2), change**2
            )
            change = first[name] / (second[name].sqrt() + config.tau)
        stepped[name] = (start + config.lr * change).float()
    return stepped, OptimizerState(first, second)


def _moment(moments: Arrays, name: str, like: Tensor, initial: float = 0.0) -> Tensor:
    return moments[name] if name in moments else torch.full_like(like, initial)


def _average(decay: float, former: Tensor, value: Tensor) -> Tensor:
    return decay * former + (1 - decay) * value
