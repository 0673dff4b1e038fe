"""A local training step, against a loop that has nothing but PyTorch in it.

    python tests/benchmarks/step.py [--steps 50] [--pairs 10] [--compile]

One client of each modality at the paper's sizes: 20 steps of time, 24 items a batch, a model 30
wide with 5 encoder layers, features 100, 73 and 100 wide, one thread. `ours` is a client's whole
round of so many local steps without samples, `sampled` with the default's four; `bare` runs the
same module on tensors that lie ready, with the same loss, clipping and optimiser; `compiled` does
that with `torch.compile`. They take turns; CPU milliseconds a step, median over the pairs, and the
median of the pairs' ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from figures import Figure
from torch import nn

from client.trainer import train
from common.config import Config, Sampler, compose_config
from common.data.batching import Padded, pad_all
from common.data.dataset import Sequences
from common.data.federation import ClientData
from common.model.ha_fedformer import HAFedformer, ModelSpec, build_model
from common.task import Task

WIDTHS = {"language": 100, "audio": 73, "vision": 100}
STEPS_OF_TIME, BATCH = 20, 24


def made_up(modality: str, items: int) -> ClientData:
    """Return a client with random items."""
    rng = np.random.default_rng(0)
    rows = items * STEPS_OF_TIME
    sequences = Sequences(
        rng.normal(size=(rows, WIDTHS[modality])).astype(np.float32),
        np.arange(items) * STEPS_OF_TIME,
        np.full(items, STEPS_OF_TIME),
    )
    labels = rng.normal(size=items).astype(np.float32)
    every = np.arange(items)
    return ClientData(modality, Task.regression, sequences, labels, every, every, every[:0])


def model_of(modality: str, config: Config) -> HAFedformer:
    """Return the paper's model of one modality."""
    spec = ModelSpec({modality: (WIDTHS[modality],)}, 1, Task.regression, config.model)
    return build_model(spec, seed=0)


def bare(data: ClientData, config: Config, *, compiled: bool = False) -> Callable[[], object]:
    """Return a loop over all items with nothing but PyTorch in it."""
    model = model_of(data.modality, config).train()
    predict = torch.compile(model, dynamic=False) if compiled else model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.client.lr, fused=True)
    padded, labels = pad_all(data.sequences), torch.from_numpy(data.labels)
    parts = [slice(at, at + BATCH) for at in range(0, len(labels), BATCH)]
    ready = [(Padded(padded.values[part], padded.lengths[part]), labels[part]) for part in parts]

    def run() -> None:
        for inputs, wanted in ready:
            loss = nn.functional.l1_loss(predict(data.modality, inputs)[:, 0], wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.client.max_grad_norm)
            optimizer.step()

    return run


def ours(data: ClientData, config: Config) -> Callable[[], object]:
    """Return a client's local training."""
    model = model_of(data.modality, config)
    return lambda: train(model, data, config.client, config.strategy.sampler, seed=0)


def timed(run: Callable[[], object], steps: int) -> float:
    """Return the CPU milliseconds of a step."""
    began = time.process_time()
    run()
    return 1e3 * (time.process_time() - began) / steps


def compared(
    steps: int, pairs: int, *, compiled: bool = False
) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    """Yield for each modality the CPU ms of a step, and the ratios to the bare loop."""
    torch.set_num_threads(1)
    sampled = compose_config("config", ["client.local_epochs=1", f"client.batch_size={BATCH}"])
    plain = compose_config(
        "config",
        ["strategy=fedavg", "client.local_epochs=1", f"client.batch_size={BATCH}"],
    )
    assert plain.strategy.sampler.name is Sampler.last
    for modality in WIDTHS:
        data = made_up(modality, steps * BATCH)
        runs = {
            "bare": bare(data, plain),
            "ours": ours(data, plain),
            "sampled": ours(data, sampled),
        }
        if compiled:
            runs["compiled"] = bare(data, plain, compiled=True)
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if name == "compiled":
                print(f"{modality}: the first compiled round, {time.perf_counter() - began:.1f} s")
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(pairs):
            for name, run in runs.items():
                found[name].append(timed(run, steps))
        middle = {name: statistics.median(each) for name, each in found.items()}
        ratios = {
            name: statistics.median(a / b for a, b in zip(found[name], found["bare"], strict=True))
            for name in runs
            if name != "bare"
        }
        yield modality, middle, ratios


def figures() -> Iterator[Figure]:
    """Measure each modality."""
    for modality, middle, ratios in compared(steps=30, pairs=5):
        yield Figure(f"a bare step, {modality}", middle["bare"], "ms CPU")
        yield Figure(f"a local step, {modality}", middle["ours"], "ms CPU", 15, "75 / 5")
        yield Figure(f"against the bare loop, {modality}", ratios["ours"], "", 1.1, "10 % more")
        yield Figure(f"with four samples, {modality}", ratios["sampled"], "", 1.1, "10 % more")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    print("CPU ms a step, and of the bare loop's")
    for modality, middle, ratios in compared(given.steps, given.pairs, compiled=given.compile):
        found = [f"{name} {ms:.2f} ({ratios.get(name, 1):.3f})" for name, ms in middle.items()]
        print(f"{modality}: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
