"""A round's uplinks from the wire into the new model, for 10 to 10,000 clients: time and memory.

    python tests/benchmarks/aggregation.py [--clients 10 100 1000 10000] [--strategy fedavg …]

The paper's model: encoders of 59 thousand weights and a decoder of 24 thousand. Every reply is a
message of its own; the strategy of a federation measures, decodes, checks and compares it with the
others, and merges them all. One thread. Making the replies is not in the seconds. Each row is a
process of its own; memory is how far its peak rose over the round.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

sys.path.append(str(Path(__file__).parents[1] / "server"))
from fake_nodes import FakeGrid, client, silent
from figures import Figure, in_a_process, main, peak
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor
from updates import uplink

from common.clients import ClientKey
from common.config import Config, EncoderConfig, compose
from common.model.calibration import label_sums, prior_of
from common.model.ha_fedformer import ModelSpec, build_model, split_arrays, trained_names
from common.posterior import Form, Posterior
from common.protocol import encode_uplink
from common.structures import (
    decoder_structure,
    encoder_structure,
    fit_gaussian,
    posterior_form,
)
from common.task import Task
from server.roster.labels import PooledLabels
from server.roster.registry import Member, Registry, Terms
from server.strategy import HierarchicalAggregation

WIDTHS = {"language": 100, "audio": 73, "vision": 100}
LABELS = torch.linspace(-1, 1, 24)
SAMPLES = 4
CLIENTS = (10, 100, 1_000, 10_000)
STRATEGIES = ("fedavg", "hierarchical")


class Clocks:
    """Add up the seconds, and the CPU seconds, of the blocks that it is the context of."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]


def timed(messages: Iterable[Message], clocks: Clocks) -> Iterator[Message]:
    """Yield messages; count what it takes to make them."""
    coming = iter(messages)
    while True:
        with clocks:
            message = next(coming, None)
        if message is None:
            return
        yield message


def samples_of(
    arrays: Mapping[str, Tensor], config: EncoderConfig
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield names, samples near these arrays and, where a client measures them, input moments."""
    generator = torch.Generator().manual_seed(0)
    structure = encoder_structure(config)
    reads_inputs = structure is not None and structure.reads_inputs
    for name, array in arrays.items():
        moments = None
        if reads_inputs and posterior_form(array, structure) is Form.row:
            inputs = torch.randn(256, array[0].numel(), generator=generator, dtype=torch.float64)
            moments = inputs.T @ inputs / len(inputs)
        noise = torch.randn(SAMPLES, *array.shape, generator=generator)
        yield name, array + 1e-3 * noise, moments


def fitted(arrays: Mapping[str, Tensor], config: EncoderConfig) -> Posterior:
    """Return what a client would send of arrays that are near these."""
    gaussians = {
        name: fit_gaussian(samples, config, arrays[name], moments)
        for name, samples, moments in samples_of(arrays, config)
    }
    return Posterior.of(gaussians)


def keys_of(clients: int) -> list[ClientKey]:
    """Return so many clients, of all modalities in turn."""
    return sorted(ClientKey(list(WIDTHS)[number % 3], number // 3) for number in range(clients))


def prepare_process() -> None:
    """Let messages be made outside a Flower process, on one thread."""
    torch.set_num_threads(1)
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def strategy_of(
    config: Config, keys: Sequence[ClientKey]
) -> tuple[HierarchicalAggregation, dict[str, Tensor], Grid]:
    """Return the strategy of a federation with these clients, its model, and a node for each."""
    shapes = {name: (width,) for name, width in WIDTHS.items()}
    model = build_model(ModelSpec(shapes, 1, Task.regression, config.model), seed=0)
    arrays = model.state_dict()
    sums = label_sums(LABELS, Task.regression, 1)
    described = {
        name: client(f"{name}-0", width=WIDTHS[name], examples=len(LABELS)) for name in WIDTHS
    }
    registry = Registry(Terms(shapes, Task.regression, 1))
    for number, key in enumerate(keys, 1):
        registry.members[key] = Member(number, replace(described[key.modality], key=key))
        registry.asked.add(number)
    labels = PooledLabels(prior_of(sums, Task.regression), skew=0.0)
    trained = split_arrays({name: arrays[name] for name in trained_names(model)})
    strategy = HierarchicalAggregation(config, registry, labels, trained)
    return strategy, arrays, cast(Grid, FakeGrid(dict.fromkeys(range(1, len(keys) + 1), silent)))


def updates(strategy: HierarchicalAggregation, config: Config) -> dict[str, RecordDict]:
    """Return the content of a client's reply by modality."""
    trained = strategy._trained
    settings = config.strategy
    y, p = LABELS[:2].double(), LABELS[:2].double() + 0.1
    calibration_sums = torch.stack([torch.ones_like(y), y, y**2, p, p**2, p * y]).sum(dim=1)
    steps = config.client.local_epochs * -(-len(LABELS) // config.client.batch_size)
    decoder = EncoderConfig("average")
    if decoder_structure(settings.decoder):
        shrinkage = settings.decoder.shrinkage
        decoder = EncoderConfig("pbea", "inputs", shrinkage=shrinkage, scale="absolute")
    contents = {}
    for name, encoder in trained.encoders.items():
        sent = uplink(
            f"{name}-0",
            fitted(encoder, settings.encoder),
            fitted(trained.decoder, decoder),
            examples=len(LABELS),
            calibration_sums=calibration_sums,
            steps=steps,
        )
        contents[name] = encode_uplink(sent)
    return contents


def replies(
    messages: Iterable[Message], keys: Iterable[ClientKey], contents: Mapping[str, RecordDict]
) -> Iterator[Message]:
    """Answer each message, each with bytes of its own."""
    for message, key in zip(messages, keys, strict=True):
        content = RecordDict(dict(contents[key.modality]))
        content["about"] = ConfigRecord({**content["about"], "part": key.part})
        (array,) = content["tensors"].values()
        copied = type(array)(array.dtype, array.shape, array.stype, bytes(bytearray(array.data)))
        content["tensors"] = ArrayRecord({"tensors": copied})
        yield Message(content, reply_to=message)


def measure(clients: int, name: str) -> tuple[float, float, float]:
    """Merge one round; return seconds, CPU seconds, and by how many MB the memory's peak rose."""
    prepare_process()
    config = compose(Config, [f"strategy={name}", "model=paper"])
    keys = keys_of(clients)
    strategy, arrays, nodes = strategy_of(config, keys)
    contents = updates(strategy, config)
    messages = strategy.configure_train(1, ArrayRecord(arrays), ConfigRecord(), nodes)
    before = peak()
    made, whole = Clocks(), Clocks()
    with whole:
        strategy.aggregate_train(1, timed(replies(messages, keys, contents), made))
    report = strategy.report
    assert report and sum(report.clients.values()) == clients, report
    return whole.seconds - made.seconds, whole.cpu - made.cpu, peak() - before


def figures(
    clients: Sequence[int] = CLIENTS, strategy: Sequence[str] = STRATEGIES
) -> Iterator[Figure]:
    """Measure rounds of so many clients."""
    for name in strategy:
        for count in clients:
            seconds, cpu, memory = in_a_process(measure, count, name)
            what, most = f"merge {count:,} clients, {name}", count == 10_000
            yield Figure(what, seconds, "s", 10 if most else None, "for 10,000", cpu)
            yield Figure(f"{what}: memory", memory, "MB", 100 if most else None, "flat")


if __name__ == "__main__":
    main(figures)
