"""What each posterior structure costs: bytes to send, seconds to fit, time and memory to merge.

    python tests/benchmarks/structures.py [--parameters 60000 6000000] [--clients 10 1000]

Every figure is of one encoder. Clients stream through the server's sum, so its memory does not grow
with their number; of many clients the first `MEASURED` are merged and the rest is in proportion,
which the table marks with ~. Each row is a process of its own, for its peak of memory.
"""

import argparse
import time
from itertools import product

import torch
from aggregation import samples_of
from figures import in_a_process, peak

from common.clients import ClientKey
from common.config import EncoderConfig, ModelConfig
from common.messages import Uplink, no_numbers
from common.model.encoder import Encoder
from common.posterior import Gaussian, Posterior
from common.protocol import encode_uplink, payload_bytes
from common.structures import fit_gaussian
from server.aggregation.pbea import PosteriorSum

FEATURES, MEASURED = 74, 10

#: Parameters to the sizes that give about as many.
SIZES = {60_000: ModelConfig(), 6_000_000: ModelConfig(width=248, heads=8, layers=8)}


def measure(parameters: int, clients: int, structure: str) -> tuple[float, float, float, float]:
    """Fit once, and merge as many copies as there are clients.

    Returns MB to send, seconds to fit, seconds to merge, and MB of memory to merge.
    """
    torch.set_num_threads(1)
    settings = EncoderConfig("pbea", structure, shrinkage=0.5)
    if structure == "none":
        settings = EncoderConfig("average")
    encoder = Encoder((FEATURES,), SIZES[parameters], 0.0)
    arrays = {name: array.detach() for name, array in encoder.named_parameters()}
    given = list(samples_of(arrays, settings))
    began = time.perf_counter()
    posterior = Posterior.of(
        {
            name: fit_gaussian(samples, settings, arrays[name], moments)
            for name, samples, moments in given
        }
    )
    fitting = time.perf_counter() - began
    decoder, nothing = Posterior.of({"d": Gaussian(torch.zeros(1))}), no_numbers()
    uplink = Uplink(ClientKey("audio", 0), 1, posterior, decoder, 1, 0.0, nothing, nothing, 1)
    before, merged, total = peak(), min(clients, MEASURED), PosteriorSum()
    began = time.perf_counter()
    for _ in range(merged):
        total = total.add(posterior, 1.0)
    adding = time.perf_counter() - began
    total.finish()
    solving = time.perf_counter() - began - adding
    merging = adding * clients / merged + solving
    return payload_bytes(encode_uplink(uplink)) / 1e6, fitting, merging, peak() - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--clients", type=int, nargs="*", default=[10, 1000])
    given = parser.parse_args()
    print("| parameters | clients | structure | MB sent | s to fit | s to merge | MB to merge |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for size, clients, structure in product(
        given.parameters, given.clients, ["none", "diagonal", "row", "low_rank", "inputs"]
    ):
        sent, fitting, merging, memory = in_a_process(measure, size, clients, structure)
        about = "~" if clients > MEASURED else ""
        print(
            f"| {size:,} | {clients:,} | {structure} | {sent:.2f} | {fitting:.3f} | "
            f"{about}{merging:.2f} | {memory:.0f} |",
            flush=True,
        )
