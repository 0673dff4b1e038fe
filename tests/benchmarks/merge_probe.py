"""The same uploads, merged in several ways: far less noisy than whole runs.

    python tests/benchmarks/merge_probe.py --seeds 21 22 23 --rounds 1 2 4 8 \\
        --merges "strategy=pbea" "strategy=pbea strategy.encoder.structure=diagonal" -- \\
        experiment=digits dataset.path=digits.npz

A federation is trained by FedAvg. At the given rounds the clients train once more from the same
model with the same seeds for each merge, so that all that differs is what they send of the same
training and how the server merges it; then FedAvg goes on from its own. (Merges whose sampler moves
by itself, sgld and sghmc, change the training too.) What is printed is the change of the mean loss
of the modalities, each alone, on the server's validation items: mean and standard error over the
seeds, negative is better than FedAvg.
"""

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from client.app import run_round
from client.node import DeployedNode, describe
from common.config import Config, compose
from common.data.batching import pad_all
from common.data.federation import FederatedDataset, load_federation
from common.messages import ClientDescription, Downlink
from common.model.calibration import standardise
from common.model.ha_fedformer import (
    HAFedformer,
    ModelSpec,
    build_model,
    join_arrays,
    set_standardisation,
    split_arrays,
    task_loss,
)
from common.seeding import derive_seed
from server.aggregation.hierarchy import RoundSum, merge_round
from server.roster.labels import pool_labels
from server.roster.statistics import pool_moments


@dataclass
class Federation:
    """What stays the same from round to round."""

    config: Config
    data: FederatedDataset
    clients: list[ClientDescription]
    prior: torch.Tensor
    model: HAFedformer

    def merged(self, config: Config, server_round: int) -> dict[str, torch.Tensor]:
        """Train all clients from the present model and merge them as a configuration says."""
        parts = split_arrays(self.model.state_dict())
        total = RoundSum(config.strategy)
        for client in self.clients:
            key = client.key
            encoder = parts.encoders[key.modality]
            downlink = Downlink(key, server_round, encoder, parts.decoder, self.prior)
            total = total.add(run_round(downlink, DeployedNode(key, None), config))
        noise = torch.Generator().manual_seed(server_round)
        return join_arrays(merge_round(total, parts, noise).parts)

    @torch.inference_mode()
    def loss(self, arrays: dict[str, torch.Tensor]) -> float:
        """Return the mean loss of the modalities, each alone, on the validation items."""
        model = build_model(self.model.spec, seed=0).eval()
        model.load_state_dict(self.model.state_dict() | arrays)
        items = self.data.validation
        labels = torch.from_numpy(standardise(items.labels, self.prior, self.data.task))
        losses = [
            task_loss(model(name, pad_all(each)), labels, self.data.task).item()
            for name, each in items.sequences.items()
        ]
        return statistics.mean(losses)


def start(config: Config) -> Federation:
    """Load the data and build the first model."""
    data = load_federation(config)
    config = replace(config, dataset=replace(config.dataset, task=data.task))
    described = [describe(DeployedNode(key, None), config).clients[0] for key in data.clients]
    prior = pool_labels(described, data.task, data.outputs).prior
    spec = ModelSpec(dict(data.shapes), data.outputs, data.task, config.model)
    model = build_model(spec, derive_seed(config.seed, "model"))
    for name, moments in pool_moments(described).items():
        set_standardisation(model, name, moments)
    return Federation(config, data, described, prior, model)


def probe(
    overrides: Sequence[str], merges: Sequence[str], rounds: Iterable[int]
) -> dict[tuple[int, str], float]:
    """Return round and merge to the change of the loss against FedAvg."""
    base = compose(Config, [*overrides, "strategy=fedavg"])
    federation = start(base)
    changes = {}
    for server_round in range(1, max(rounds) + 1):
        average = federation.merged(federation.config, server_round)
        if server_round in rounds:
            reference = federation.loss(average)
            changes[server_round, "FedAvg's loss"] = reference
            for merge in merges:
                config = compose(Config, [*overrides, *merge.split()])
                config = replace(config, dataset=federation.config.dataset)
                other = federation.merged(config, server_round)
                changes[server_round, merge] = federation.loss(other) - reference
        federation.model.load_state_dict(federation.model.state_dict() | average)
    return changes


def main() -> None:
    """Print a table: a row for each merge, a column for each round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--merges", nargs="+", required=True)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    for seed in given.seeds:
        changes = probe([*given.overrides, f"seed={seed}"], given.merges, given.rounds)
        for key, value in changes.items():
            found[key].append(value)
    print(f"| | {' | '.join(f'round {number}' for number in given.rounds)} |")
    print(f"| --- |{' ---: |' * len(given.rounds)}")
    for merge in ("FedAvg's loss", *given.merges):
        cells = []
        for number in given.rounds:
            values = found[number, merge]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
            cells.append(f"{statistics.mean(values):+.4f} ± {error:.4f}")
        print(f"| {merge} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
