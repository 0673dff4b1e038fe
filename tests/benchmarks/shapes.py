"""Modalities of unlike length and width: the default fusion, and what wide features cost.

    python tests/benchmarks/shapes.py [--seeds 1 2 3 4 5 6 7 8] [--widths 6373 60000]

Of two equally good modalities, of so many steps each, a label's estimate has an error of its own:
the correlation on test items of the default rule, and how far it is behind the best of all rules of
the same run, as mean and sd over the seeds. Then one modality of so many features in a step beside
one of 5: for each strategy, bytes up and peak memory of the run over those of `fedavg`, and which
modality was not trained, if any. (`closed_form` refuses what is so wide.)
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from figures import BIN, Figure, Ran, main, run_command
from numpy.typing import NDArray

STEPS = ((12, 12), (1, 1), (50, 1), (50, 10))
STRATEGIES = (
    *("fedavg", "hierarchical", "few_rounds", "paper", "pbea", "cmda", "median", "trimmed_mean"),
    *("fedadam", "fedavgm", "fedatt", "fednova", "fedprox"),
)
TRAIN = (
    *("dataset=file", "dataset.group=group", "model=small", "clients.default=2", "tracking=none"),
    "runtime=sequential",
)


def estimates(
    steps: int, label: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.single]:
    """Return (N, steps, 5) features that tell the label with an error that all steps share."""
    told = label + 0.9 * rng.normal(size=len(label))
    values = told[:, None, None] * rng.normal(size=(1, 1, 5))
    return (values + 0.5 * rng.normal(size=(len(label), steps, 5))).astype(np.single)


def run(
    folder: Path, arrays: Mapping[str, NDArray[np.generic]], *overrides: str
) -> tuple[Ran, dict[str, dict[str, dict[str, float]]], int]:
    """Train on some arrays; return what it took, the summary, and bytes up of the last round."""
    path, place = folder / "items.npz", folder / "run"
    items = len(arrays["label"])
    np.savez(path, group=np.arange(items) % (items // 6), **arrays)
    ran = run_command(
        BIN / "utmp-train", *TRAIN, f"dataset.path={path}", f"run_dir={place}", *overrides
    )
    rounds = (place / "rounds.jsonl").read_text().splitlines()
    summary = json.loads((place / "summary.json").read_text())
    return ran, summary, json.loads(rounds[-1])["bytes_up"]


def fused(steps: Sequence[int], seed: int) -> tuple[float, float]:
    """Return the correlation of the default rule, and of the best of all."""
    rng = np.random.default_rng(seed)
    label = rng.normal(size=1500)
    arrays = {f"m{place}": estimates(count, label, rng) for place, count in enumerate(steps)}
    with tempfile.TemporaryDirectory() as folder:
        _, summary, _ = run(Path(folder), {"label": label, **arrays}, "rounds=8", f"seed={seed}")
    every = [scores["corr"] for scores in summary["test_by_fusion"].values()]
    return summary["test"]["multimodal"]["corr"], max(every)


def wide(width: int, strategy: str) -> tuple[float, float, list[str]]:
    """Return bytes up, MB of memory and the untrained modalities of a run."""
    rng = np.random.default_rng(0)
    label = rng.normal(size=240)
    narrow = label[:, None, None] + rng.normal(size=(240, 12, 5))
    spectrum = (
        label[:, None] * rng.normal(size=(1, width)) + rng.normal(size=(240, width))
    ).astype("f2")
    with tempfile.TemporaryDirectory() as folder:
        arrays = {"label": label, "gait": narrow.astype(np.single), "grip": spectrum}
        ran, summary, sent = run(Path(folder), arrays, "rounds=3", f"strategy={strategy}")
    return sent, ran.megabytes, list(summary["untrained"])


def figures(
    seeds: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8),
    widths: Sequence[int] = (6_373, 60_000),
    strategies: Sequence[str] = STRATEGIES,
) -> Iterator[Figure]:
    """Train on all of them."""
    for steps in STEPS if seeds else ():
        found = [fused(steps, seed) for seed in seeds]
        scores, gaps = [one for one, _ in found], [best - one for one, best in found]
        what = f"{steps[0]} and {steps[1]} steps"
        spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
        yield Figure(f"{what}: corr{spread}", statistics.mean(scores), "")
        yield Figure(f"{what}: behind the best rule", statistics.mean(gaps), "", 0.01, "corr")
    for width in widths:
        plain: tuple[float, float] | None = None
        for strategy in strategies:
            sent, megabytes, untrained = wide(width, strategy)
            plain = plain or (sent, megabytes)
            what = f"{width:,} features, {strategy}"
            if untrained:
                print(f"{what}: untrained {', '.join(untrained)}")
            yield Figure(f"{what}: bytes up", sent / plain[0], "times", 2, "of fedavg's")
            yield Figure(f"{what}: memory", megabytes / plain[1], "times", 1.5, "of fedavg's")


if __name__ == "__main__":
    main(figures)
