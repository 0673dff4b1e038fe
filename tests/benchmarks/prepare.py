"""`utmp-prepare` beside NumPy that writes the same rows: seconds, CPU and memory.

    python tests/benchmarks/prepare.py [--megabytes 500] [--repeats 5] [--kinds npz multibench]

NumPy loads the source, deals its items at random out to nine clients of one modality each, and a
tenth and a fifth of them to validation and test, and writes each client's rows with `np.savez`. It
checks, counts and hashes nothing. Both read the source from a warm cache, in turns; printed are
medians, and the ratios of a turn with their range.
"""

import pickle
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from figures import BIN, Figure, Ran, in_a_process, main, run_command

STEPS, WIDTHS = 50, {"text": 300, "audio": 74, "vision": 35}


def made(items: int) -> dict[str, np.ndarray]:
    """Return arrays as a source has them, padded on the left, five items in a group."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {"labels": rng.normal(0, 1.5, (items, 1, 1)).clip(-3, 3)}
    lengths = rng.integers(STEPS // 4, STEPS + 1, items)
    padding = np.arange(STEPS) < STEPS - lengths[:, None]
    for name, width in WIDTHS.items():
        arrays[name] = rng.standard_normal((items, STEPS, width), dtype=np.float32)
        arrays[name][padding] = 0
    arrays["id"] = np.array([f"video{item // 5}[{item % 5}]" for item in range(items)])
    return arrays


def write_npz(path: Path, items: int) -> None:
    """Write ``.npz`` arrays with a group for each item."""
    arrays = made(items)
    groups = np.array([name.partition("[")[0] for name in arrays["id"]])
    features = {name: arrays[name] for name in WIDTHS}
    np.savez(path, id=arrays["id"], group=groups, label=arrays["labels"].ravel(), **features)


def write_multibench(path: Path, items: int) -> None:
    """Write a pickle as MultiBench has it."""
    arrays, cuts = made(items), [int(0.7 * items), int(0.8 * items)]
    sides = zip(("train", "valid", "test"), np.split(np.arange(items), cuts), strict=True)
    content = {
        side: {name: array[index] for name, array in arrays.items()} for side, index in sides
    }
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=4)


KINDS = {"npz": ("source.npz", write_npz), "multibench": ("source.pkl", write_multibench)}

BARE = Path(__file__).parent / "contestants" / "bare_prepare.py"

#: What is measured, its unit, and how many times what NumPy takes it may be.
MEASURES = (("seconds", "s", 2.5), ("cpu", "s", None), ("megabytes", "MB", None))


def figures(
    megabytes: int = 500,
    repeats: int = 5,
    kinds: Sequence[str] = tuple(KINDS),
    folder: str = tempfile.gettempdir(),
) -> Iterator[Figure]:
    """Prepare a source of each kind, in turns with NumPy."""
    items = int(megabytes * 1e6 / (4 * STEPS * sum(WIDTHS.values())))
    for kind in kinds:
        file, write = KINDS[kind]
        turns: list[tuple[Ran, Ran]] = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory(dir=folder) as kept:
                source, bare, ours = Path(kept) / file, Path(kept) / "bare", Path(kept) / "ours"
                in_a_process(write, source, items)
                size = source.stat().st_size / 1e6
                bare.mkdir()
                group = ["group=group"] if kind == "npz" else []
                turns.append(
                    (
                        run_command(sys.executable, BARE, source, bare),
                        run_command(BIN / "utmp-prepare", f"path={source}", f"out={ours}", *group),
                    )
                )
        for what, unit, limit in MEASURES:
            ratios = sorted(getattr(one, what) / getattr(other, what) for other, one in turns)
            for whose, chosen in (("NumPy", 0), ("ours", 1)):
                value = statistics.median(getattr(turn[chosen], what) for turn in turns)
                most = 1.5 * size if what == "megabytes" and chosen else None
                name = f"{kind} of {size:.0f} MB, {whose}: {what}"
                yield Figure(name, value, unit, most, "1.5 times the source")
            spread = f"{kind}: {what}, times NumPy ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            yield Figure(spread, statistics.median(ratios), "", limit, "of NumPy")


if __name__ == "__main__":
    main(figures)
