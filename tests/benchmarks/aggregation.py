"""A round's uplinks from the wire into the new model, for 10 to 10,000 clients: time and memory.

    python tests/benchmarks/aggregation.py [--clients 10 100 1000 10000] [--strategy fedavg …]

The paper's model: encoders of 59 thousand weights and a decoder of 24 thousand. Every reply is a
message of its own; the strategy of a federation measures, decodes, checks and compares it with the
others, and merges them all. One thread. Making the replies is not in the seconds. Each row is a
process of its own; memory is how far its peak rose over the round.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from figures import Figure
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from common.clients import ClientKey
from common.config import Config, EncoderConfig, compose
from common.data.moments import FeatureMoments
from common.messages import ClientDescription, Uplink, no_numbers
from common.model.calibration import label_sums, prior_of
from common.model.ha_fedformer import ModelSpec, build_model, split_arrays, trained_names
from common.posterior import Gaussian, Posterior
from common.protocol import encode_uplink, payload_bytes
from common.structures import Structure, decoder_structure, encoder_structure
from common.task import Task
from server.roster.labels import PooledLabels
from server.roster.registry import Member, Registry
from server.strategy import HierarchicalAggregation

WIDTHS = {"language": 100, "audio": 73, "vision": 100}
LABELS = torch.linspace(-1, 1, 24)
SAMPLES = 4


class Nodes:
    """A grid that knows who is there, and sends nothing."""

    def __init__(self, count: int) -> None:
        self._nodes = [NodeInfo(node_id=node + 1) for node in range(count)]

    def get_nodes(self) -> list[NodeInfo]:
        """Return the nodes."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send nothing."""
        return []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return nothing."""
        return []


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


def fitted(
    arrays: Mapping[str, Tensor], config: EncoderConfig, structure: Structure | None
) -> Posterior:
    """Return what a client would send of arrays that are near these."""
    generator = torch.Generator().manual_seed(0)
    posterior = {}
    for name, array in arrays.items():
        noise = torch.randn(SAMPLES, *array.shape, generator=generator)
        moments = None
        if structure is not None and structure.reads_inputs and array.ndim >= 2:
            inputs = torch.randn(256, array[0].numel(), generator=generator, dtype=torch.float64)
            moments = inputs.T @ inputs / len(inputs)
        samples = array + 1e-3 * noise
        if structure is None:
            posterior[name] = Gaussian(samples.mean(dim=0))
        else:
            scale = config.scale if structure.sends_change else "absolute"
            posterior[name] = structure.fit(samples, config.shrinkage, scale, array, moments)
    return Posterior.of(posterior)


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
    widths = {name: (width,) for name, width in WIDTHS.items()}
    model = build_model(ModelSpec(widths, 1, Task.regression, config.model), seed=0)
    arrays = model.state_dict()
    sums = label_sums(LABELS, Task.regression, 1)
    registry = Registry()
    for number, key in enumerate(keys, 1):
        moments = FeatureMoments(*np.ones((3, WIDTHS[key.modality])))
        client = ClientDescription(key, len(LABELS), Task.regression, sums, moments)
        registry.members[key] = Member(number, client)
        registry.asked.add(number)
    labels = PooledLabels(prior_of(sums, Task.regression), no_numbers(), skew=0.0)
    trained = split_arrays({name: arrays[name] for name in trained_names(model)})
    strategy = HierarchicalAggregation(config, registry, labels, trained)
    return strategy, arrays, cast(Grid, Nodes(len(keys)))


def updates(strategy: HierarchicalAggregation, config: Config) -> dict[str, RecordDict]:
    """Return the content of a client's reply by modality."""
    trained = strategy._trained
    settings = config.strategy
    y, p = LABELS[:2].double(), LABELS[:2].double() + 0.1
    calibration_sums = torch.stack([torch.ones_like(y), y, y**2, p, p**2, p * y]).sum(dim=1)
    steps = config.client.local_epochs * -(-len(LABELS) // config.client.batch_size)
    contents = {}
    for name, encoder in trained.encoders.items():
        uplink = Uplink(
            ClientKey(name, 0),
            1,
            fitted(encoder, settings.encoder, encoder_structure(settings.encoder)),
            fitted(
                trained.decoder,
                EncoderConfig("pbea", shrinkage=settings.decoder.shrinkage),
                decoder_structure(settings.decoder),
            ),
            len(LABELS),
            0.5,
            calibration_sums,
            no_numbers(),
            steps,
        )
        contents[name] = encode_uplink(uplink)
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


def measure(clients: int, name: str) -> dict[str, float]:
    """Merge one round; return seconds, memory and bytes."""
    prepare_process()
    config = compose(Config, [f"strategy={name}", "model=paper"])
    keys = keys_of(clients)
    strategy, arrays, nodes = strategy_of(config, keys)
    contents = updates(strategy, config)
    messages = strategy.configure_train(1, ArrayRecord(arrays), ConfigRecord(), nodes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made, whole = Clocks(), Clocks()
    with whole:
        strategy.aggregate_train(1, timed(replies(messages, keys, contents), made))
    report = strategy.report
    assert report and sum(report.clients.values()) == clients, report
    return {
        "seconds": whole.seconds - made.seconds,
        "cpu": whole.cpu - made.cpu,
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
        "sent": sum(map(payload_bytes, contents.values())) / len(contents),
    }


def measured_apart(clients: int, name: str) -> dict[str, float]:
    """As `measure`, in a process of its own."""
    command = [sys.executable, __file__, "--one", str(clients), name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def figures() -> Iterator[Figure]:
    """Measure 10 to 10,000 clients."""
    for name in ("fedavg", "hierarchical"):
        for clients in (10, 100, 1_000, 10_000):
            row, most = measured_apart(clients, name), clients == 10_000
            what = f"merge {clients:,} clients, {name}"
            seconds, cpu = row["seconds"], row["cpu"]
            yield Figure(what, seconds, "s", 10 if most else None, "for 10,000", cpu)
            yield Figure(f"{what}: memory", row["memory"], "MB", 100 if most else None, "flat")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--strategy", nargs="*", default=["fedavg", "hierarchical"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(int(given.one[0]), given.one[1])))
        return
    print(f"{'strategy':14}{'clients':>8}{'kB each':>9}{'seconds':>9}{'CPU s':>8}{'MB':>6}")
    for name in given.strategy:
        for clients in given.clients:
            row = measured_apart(clients, name)
            print(
                f"{name:14}{clients:8}{row['sent'] / 1e3:9.0f}{row['seconds']:9.2f}"
                f"{row['cpu']:8.2f}{row['memory']:6.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
