"""A local training step, against a plain PyTorch loop.

    python tests/benchmarks/step.py [--steps 50] [--pairs 10]

One client of each modality at the paper's sizes: 20 steps of time, 24 items a batch, a model 30
wide with 5 encoder layers, features 100, 73 and 100 wide, one thread. `ours` is a client's whole
round of so many local steps without samples, `more` with the default's four; `bare` runs the
same module on tensors that are ready, with the same loss, clipping and optimiser. They take turns;
CPU milliseconds a step, median over the pairs, and the median of the pairs' ratios.
"""

import statistics
from collections.abc import Callable, Iterator

import numpy as np
import torch
from figures import Figure, cpu_of, main
from torch import nn

from client.trainer import train
from common.config import Config, Sampler, compose
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
    return ClientData(modality, Task.regression, sequences, labels, every, every[:0])


def model_of(modality: str, config: Config) -> HAFedformer:
    """Return the paper's model of one modality."""
    spec = ModelSpec({modality: (WIDTHS[modality],)}, 1, Task.regression, config.model)
    return build_model(spec, seed=0)


def bare(data: ClientData, config: Config) -> Callable[[], object]:
    """Return a loop over all items with nothing but PyTorch in it."""
    model = model_of(data.modality, config).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.client.lr, fused=True)
    padded, labels = pad_all(data.sequences), torch.from_numpy(data.labels)
    parts = [slice(at, at + BATCH) for at in range(0, len(labels), BATCH)]
    ready = [(Padded(padded.values[part], padded.lengths[part]), labels[part]) for part in parts]

    def run() -> None:
        for inputs, wanted in ready:
            loss = nn.functional.l1_loss(model(data.modality, inputs)[:, 0], wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.client.max_grad_norm)
            optimizer.step()

    return run


def ours(data: ClientData, config: Config) -> Callable[[], object]:
    """Return a client's local training."""
    model = model_of(data.modality, config)
    return lambda: train(model, data, config.client, config.strategy.sampler, seed=0)


def figures(steps: int = 30, pairs: int = 5) -> Iterator[Figure]:
    """Measure each modality."""
    torch.set_num_threads(1)
    common = ["client.local_epochs=1", f"client.batch_size={BATCH}"]
    plain, sampled = compose(Config, ["strategy=fedavg", *common]), compose(Config, common)
    assert plain.strategy.sampler.name is Sampler.last
    for modality in WIDTHS:
        data = made_up(modality, steps * BATCH)
        runs = {"bare": bare(data, plain), "ours": ours(data, plain), "more": ours(data, sampled)}
        for run in runs.values():
            run()
        turns = [{name: cpu_of(run) for name, run in runs.items()} for _ in range(pairs)]
        for name, what in (("bare", "a bare step"), ("ours", "a local step")):
            milliseconds = 1e3 * statistics.median(turn[name] for turn in turns) / steps
            limit = 15 if name == "ours" else None
            yield Figure(f"{what}, {modality}", milliseconds, "ms CPU", limit, "75 / 5")
        for name, what in (("ours", "against the bare loop"), ("more", "with four samples")):
            ratio = statistics.median(turn[name] / turn["bare"] for turn in turns)
            yield Figure(f"{what}, {modality}", ratio, "", 1.1, "10 % more")


if __name__ == "__main__":
    main(figures)
