"""What each posterior structure costs: bytes to send, seconds to fit, time and memory to merge.

    python tests/benchmarks/structures.py [--parameters 60000 6000000] [--clients 10 1000]

Every figure is of one encoder. Clients stream through the server's sum, so its memory does not grow
with their number; of many clients the first `MEASURED` are merged and the rest is in proportion,
which the table marks with ~. Each row is a process of its own, for its peak of memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import product

import torch

from common.clients import ClientKey
from common.config import EncoderConfig, ModelConfig
from common.messages import Uplink
from common.model.encoder import Encoder
from common.posterior import Gaussian, Posterior
from common.protocol import encode_uplink, payload_bytes
from common.structures import fit_gaussian
from server.aggregation.pbea import PosteriorSum

FEATURES = 74
SAMPLES = 4
MEASURED = 10

#: Parameters to the sizes that give about as many.
SIZES = {60_000: ModelConfig(), 6_000_000: ModelConfig(width=248, heads=8, layers=8)}


def fitted(config: ModelConfig, structure: str | None) -> tuple[Posterior, float]:
    """Return a posterior of an encoder with random samples, and the seconds that it took to fit."""
    settings = EncoderConfig(
        "average" if structure is None else "pbea",
        structure or "row",
        shrinkage=0.5,
    )
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder((FEATURES,), config, 0.0)
    samples, moments = {}, {}
    for name, each in encoder.named_parameters():
        noise = torch.randn(SAMPLES, *each.shape, generator=generator)
        samples[name] = each.detach() + 0.01 * noise
        if structure == "inputs" and each.ndim >= 2:
            inputs = torch.randn(256, each[0].numel(), generator=generator, dtype=torch.float64)
            moments[name] = inputs.T @ inputs / len(inputs)
    began = time.perf_counter()
    gaussians = {
        name: fit_gaussian(each, settings, each[0], moments.get(name))
        for name, each in samples.items()
    }
    return Posterior.of(gaussians), time.perf_counter() - began


def measure(parameters: int, clients: int, structure: str | None) -> dict[str, float]:
    """Fit once and merge as many copies as there are clients."""
    torch.set_num_threads(1)
    posterior, fit_seconds = fitted(SIZES[parameters], structure)
    nothing = torch.zeros(0)
    uplink = Uplink(
        ClientKey("audio", 0),
        1,
        posterior,
        Posterior.of({"d": Gaussian(torch.zeros(1))}),
        1,
        0.0,
        nothing,
        nothing,
        1,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    merged = min(clients, MEASURED)
    total = PosteriorSum()
    began = time.perf_counter()
    for _ in range(merged):
        total = total.add(posterior, 1.0)
    adding = time.perf_counter() - began
    began = time.perf_counter()
    total.finish()
    solving = time.perf_counter() - began
    return {
        "sent": payload_bytes(encode_uplink(uplink)) / 1e6,
        "fit": fit_seconds,
        "merge": adding * clients / merged + solving,
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--clients", type=int, nargs="*", default=[10, 1000])
    parser.add_argument("--one", nargs=3)
    given = parser.parse_args()
    if given.one:
        size, clients, structure = given.one
        chosen = None if structure == "none" else structure
        print(json.dumps(measure(int(size), int(clients), chosen)))
        return
    titles = (
        "parameters",
        "clients",
        "structure",
        "MB sent",
        "s to fit",
        "s to merge",
        "MB to merge",
    )
    print(f"| {' | '.join(titles)} |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for size, clients, structure in product(
        given.parameters, given.clients, ["none", "diagonal", "row", "low_rank", "inputs"]
    ):
        command = [sys.executable, __file__, "--one", str(size), str(clients), structure]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout)
        about = "~" if clients > MEASURED else ""
        print(
            f"| {size:,} | {clients:,} | {structure} | {row['sent']:.2f} | {row['fit']:.3f} | "
            f"{about}{row['merge']:.2f} | {row['memory']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
