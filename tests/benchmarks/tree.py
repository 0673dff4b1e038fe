"""A tree of aggregators: two levels against one server, and a million clients on paper.

    python tests/benchmarks/tree.py [--clients 300] [--aggregators 2] [--strategy fedavg …]

The paper's model, as in `aggregation.py`. Each aggregator is a process with clients of its own: it
checks and compares their updates, adds them, and sends its sum to the root, which merges the sums
and takes the step. One thread each; seconds are those of the slowest aggregator and of the root,
without the making of the replies. On paper, every aggregator has a thousand below it, and seconds
and bytes are those measured; where levels work one after the other, their seconds add.
"""

import math
import multiprocessing
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from aggregation import (
    STRATEGIES,
    Clocks,
    keys_of,
    prepare_process,
    replies,
    strategy_of,
    timed,
    updates,
)
from figures import Figure, main
from flwr.app import ArrayRecord, ConfigRecord

from common.clients import ClientKey
from common.config import Config, compose
from common.model.ha_fedformer import ModelArrays, join_arrays
from server.aggregation.client_weights import client_weight
from server.aggregation.hierarchy import RoundSum, merge_round

FAN_OUT = 1_000


def sum_of(config: Config, keys: Sequence[ClientKey]) -> tuple[RoundSum, ModelArrays, int, float]:
    """Return what some clients' updates add up to, the model, the bytes that came, and seconds."""
    strategy, arrays, nodes = strategy_of(config, keys)
    contents = updates(strategy, config)
    messages = strategy.configure_train(1, ArrayRecord(arrays), ConfigRecord(), nodes)
    whole, made = Clocks(), Clocks()
    with whole:
        coming = timed(replies(messages, keys, contents), made)
        total = RoundSum(config.strategy)
        for uplink in strategy.updates.take(coming):
            total = total.add(uplink, client_weight(uplink, config.strategy.weights, 1.0))
    assert not strategy.updates.rejected, strategy.updates.rejected[:3]
    return total, strategy._trained, strategy.updates.received, whole.seconds - made.seconds


def aggregate(config: Config, keys: Sequence[ClientKey]) -> bytes:
    """Be an aggregator: return what goes up, a sum and its seconds."""
    prepare_process()
    total, _, _, seconds = sum_of(config, keys)
    return pickle.dumps((total, seconds))


def merged(total: RoundSum, model: ModelArrays) -> Mapping[str, torch.Tensor]:
    """Return the model that a sum leads to."""
    return join_arrays(merge_round(total, model, torch.Generator().manual_seed(0)).parts)


def measure(name: str, clients: int, aggregators: int) -> dict[str, float]:
    """Merge one round in a tree, and at one server."""
    config = compose(Config, [f"strategy={name}", "model=paper"])
    keys = keys_of(clients)
    prepare_process()
    flat, model, came, alone = sum_of(config, keys)
    began = time.perf_counter()
    expected = merged(flat, model)
    alone += time.perf_counter() - began

    shares = [keys[number::aggregators] for number in range(aggregators)]
    with ProcessPoolExecutor(aggregators, multiprocessing.get_context("fork")) as processes:
        sums = list(processes.map(aggregate, [config] * aggregators, shares))
    arrived = time.perf_counter()
    total = RoundSum(config.strategy)
    longest = 0.0
    for sent in sums:
        part, seconds = pickle.loads(sent)
        total, longest = total.merge(part), max(longest, seconds)
    merging = time.perf_counter() - arrived
    found = merged(total, model)
    return {
        "update": came / clients,
        "sum": len(sums[0]),
        "flat": alone,
        "tree": longest + time.perf_counter() - arrived,
        "per update": longest / math.ceil(clients / aggregators),
        "per sum": merging / aggregators,
        "difference": max(float((found[name] - expected[name]).abs().max()) for name in expected),
    }


def on_paper(clients: int, row: Mapping[str, float]) -> tuple[int, float, float, float]:
    """Return the levels, seconds, MB into the root, and GB into all aggregators of a round."""
    below, levels, seconds = clients, 0, 0.0
    each, size, everything, into_root = row["per update"], row["update"], 0.0, 0.0
    while below > 1:
        fan_out = min(below, FAN_OUT)
        seconds += fan_out * each
        everything += below * size
        into_root = fan_out * size
        below = math.ceil(below / FAN_OUT)
        levels += 1
        each, size = row["per sum"], row["sum"]
    return levels, seconds, into_root / 1e6, everything / 1e9


def figures(
    clients: int = 300, aggregators: int = 2, strategy: Sequence[str] = STRATEGIES
) -> Iterator[Figure]:
    """Measure two levels, and count more on paper."""
    for name in strategy:
        row = measure(name, clients, aggregators)
        yield Figure(f"{clients} clients at one server, {name}", row["flat"], "s")
        yield Figure(f"{clients} clients, {aggregators} aggregators, {name}", row["tree"], "s")
        yield Figure(f"an update, {name}", row["update"] / 1e6, "MB")
        yield Figure(f"a sum that goes up, {name}", row["sum"] / 1e6, "MB")
        yield Figure(f"largest difference of a weight, {name}", row["difference"], "", 1e-5, "same")
        for many in (1_000, 10_000, 100_000, 1_000_000):
            levels, seconds, root, everything = on_paper(many, row)
            what = f"{many:,} clients on paper, {name}"
            yield Figure(f"{what}, levels: {levels}", seconds, "s")
            yield Figure(f"{what}, into the root", root, "MB")
            yield Figure(f"{what}, in all", everything, "GB")


if __name__ == "__main__":
    main(figures)
