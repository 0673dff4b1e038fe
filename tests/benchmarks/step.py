"""A local training step, against a plain PyTorch loop.

    python tests/benchmarks/step.py [--steps 50] [--pairs 10] [--variants compiled …] [--profile]

One client of each modality at the paper's sizes: 20 steps of time, 24 items a batch, a model 30
wide with 5 encoder layers, features 100, 73 and 100 wide, one thread. `ours` is a client's whole
round of so many local steps without samples, `sampled` with the default's four; `bare` runs the
same module on tensors that are ready, with the same loss, clipping and optimiser. They take turns;
CPU milliseconds a step, median over the pairs, and the median of the pairs' ratios. Variants are
the bare loop with one thing done otherwise: `compiled` by `torch.compile`, `foreach` with an
unfused optimiser, `math` with attention written out, `masks` with dropout that draws 16 bits an
element. `--profile` prints where the time of `ours` goes.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from figures import Figure, cpu_of, print_figures
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile

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
    return ClientData(modality, Task.regression, sequences, labels, every, every, every[:0])


def model_of(modality: str, config: Config) -> HAFedformer:
    """Return the paper's model of one modality."""
    spec = ModelSpec({modality: (WIDTHS[modality],)}, 1, Task.regression, config.model)
    return build_model(spec, seed=0)


VARIANTS = ("compiled", "foreach", "math", "masks")


class DropoutBy16Bits(nn.Module):
    """Dropout that draws 64 bits at once for four elements, so its rate is a multiple of 2^-16."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.first_kept = round(rate * 2**16) - 2**15
        self.scale = 1 / (1 - rate)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of a tensor."""
        size = x.numel()
        drawn = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = drawn.view(torch.int16)[:size].view(x.shape) >= self.first_kept
        dropped: Tensor = x * kept.to(x.dtype).mul_(self.scale)
        return dropped


def with_16_bits(module: nn.Module) -> None:
    """Put that in place of a module's dropout."""
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, DropoutBy16Bits(child.p))
        else:
            with_16_bits(child)


def bare(data: ClientData, config: Config, variant: str = "") -> Callable[[], object]:
    """Return a loop over all items with nothing but PyTorch in it."""
    model = model_of(data.modality, config).train()
    if variant == "masks":
        with_16_bits(model)
    predict = torch.compile(model, dynamic=False) if variant == "compiled" else model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.client.lr, fused=variant != "foreach")
    padded, labels = pad_all(data.sequences), torch.from_numpy(data.labels)
    parts = [slice(at, at + BATCH) for at in range(0, len(labels), BATCH)]
    ready = [(Padded(padded.values[part], padded.lengths[part]), labels[part]) for part in parts]

    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH) if variant == "math" else nullcontext():
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


def configs() -> tuple[Config, Config]:
    """Return the configuration without samples, and the default."""
    common = ["client.local_epochs=1", f"client.batch_size={BATCH}"]
    plain = compose(Config, ["strategy=fedavg", *common])
    assert plain.strategy.sampler.name is Sampler.last
    return plain, compose(Config, common)


def compared(
    steps: int, pairs: int, variants: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    """Yield for each modality the CPU ms of a step, and the ratios to the bare loop."""
    torch.set_num_threads(1)
    plain, sampled = configs()
    for modality in WIDTHS:
        data = made_up(modality, steps * BATCH)
        runs = {
            "bare": bare(data, plain),
            "ours": ours(data, plain),
            "sampled": ours(data, sampled),
        }
        runs |= {variant: bare(data, plain, variant) for variant in variants}
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if name == "compiled":
                print(f"{modality}: the first compiled round, {time.perf_counter() - began:.1f} s")
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(pairs):
            for name, run in runs.items():
                found[name].append(1e3 * cpu_of(run) / steps)
        middle = {name: statistics.median(each) for name, each in found.items()}
        ratios = {
            name: statistics.median(a / b for a, b in zip(found[name], found["bare"], strict=True))
            for name in runs
            if name != "bare"
        }
        yield modality, middle, ratios


def figures(steps: int = 30, pairs: int = 5, variants: Sequence[str] = ()) -> Iterator[Figure]:
    """Measure each modality."""
    for modality, middle, ratios in compared(steps, pairs, variants):
        yield Figure(f"a bare step, {modality}", middle["bare"], "ms CPU")
        yield Figure(f"a local step, {modality}", middle["ours"], "ms CPU", 15, "75 / 5")
        yield Figure(f"against the bare loop, {modality}", ratios["ours"], "", 1.1, "10 % more")
        yield Figure(f"with four samples, {modality}", ratios["sampled"], "", 1.1, "10 % more")
        for name in variants:
            yield Figure(f"{name} against the bare loop, {modality}", ratios[name], "")


def print_profile(steps: int) -> None:
    """Print where the CPU time of a step goes, operation by operation."""
    torch.set_num_threads(1)
    plain, _ = configs()
    for modality in WIDTHS:
        run = ours(made_up(modality, steps * BATCH), plain)
        run()
        with profile() as seen:
            run()
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
        total = sum(row.self_cpu_time_total for row in rows)
        print(f"{modality}: {total / 1e3 / steps:.1f} ms a step, profiled")
        for row in rows[:16]:
            share, ms = row.self_cpu_time_total / total, row.self_cpu_time_total / 1e3 / steps
            print(f"  {row.key[:48]:48}{share:6.1%}{ms:8.2f} ms{row.count / steps:8.1f} calls")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--variants", nargs="*", default=[], choices=VARIANTS)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.profile:
        print_profile(given.steps)
    else:
        print_figures(figures(given.steps, given.pairs, given.variants))
