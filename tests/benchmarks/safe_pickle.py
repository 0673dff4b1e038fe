"""Time of `common.data.safe_pickle.load` beside plain pickle, on a file laid out as CMU-MOSEI.

    python tests/benchmarks/safe_pickle.py [--items 5000] [--runs 5] [--folder DIR]

Writes two files of random features (float32, 50 steps, widths 300, 74 and 35, three splits): one
with ids as an object array (N, 3) of bytes, one with ids as a list of text. Loads each with both in
turn, and prints the median seconds and their ratio (limit 1.15); then the same in CPU seconds, for
machines that are busy with other things.
"""

import argparse
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.data import safe_pickle

STEPS = 50
WIDTHS = {"text": 300, "audio": 74, "vision": 35}
SHARES = {"train": 0.715, "valid": 0.082, "test": 0.203}


def ids_as_bytes(first: int, count: int) -> object:
    """Return video, start and end of each item, as MultiBench has them."""
    rows = [
        [
            f"video{item // 7}".encode(),
            f"{item % 7 * 3.5}".encode(),
            f"{item % 7 * 3.5 + 3}".encode(),
        ]
        for item in range(first, first + count)
    ]
    return np.array(rows, dtype=object)


def ids_as_text(first: int, count: int) -> object:
    """Return "video$_$segment" of each item, as MMSA has them."""
    return [f"video{item // 7}$_${item % 7}" for item in range(first, first + count)]


def write_source(path: Path, items: int, ids: Callable[[int, int], object]) -> None:
    """Write one file."""
    rng = np.random.default_rng(0)
    content, first = {}, 0
    for name, share in SHARES.items():
        count = round(items * share)
        split: dict[str, object] = {
            key: rng.standard_normal((count, STEPS, width), dtype=np.float32)
            for key, width in WIDTHS.items()
        }
        split["labels"] = rng.uniform(-3, 3, size=(count, 1, 1)).astype(np.float32)
        split["id"] = ids(first, count)
        content[name] = split
        first += count
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=4)


def plain_load(path: Path) -> object:
    """Load without any check; the file is our own."""
    with path.open("rb") as file:
        return pickle.load(file)


def seconds(load: Callable[[Path], object], path: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of one load; what it made is freed afterwards."""
    began, used = time.perf_counter(), time.process_time()
    content = load(path)
    elapsed = time.perf_counter() - began, time.process_time() - used
    del content
    return elapsed


def compare(path: Path, runs: int) -> list[tuple[float, float]]:
    """Return the medians of plain and of safe, run in turn after one round to warm up.

    Wall seconds come first, then CPU seconds.
    """
    loads = (plain_load, safe_pickle.load)
    taken: list[list[tuple[float, float]]] = [[], []]
    for run in range(runs + 1):
        for which in (0, 1) if run % 2 else (1, 0):
            elapsed = seconds(loads[which], path)
            if run:
                taken[which].append(elapsed)
    plain, safe = (np.median(each, axis=0).tolist() for each in taken)
    return list(zip(plain, safe, strict=True))


def main() -> None:
    """Write, load, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    for name, ids in {"bytes in an array": ids_as_bytes, "text in a list": ids_as_text}.items():
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "mosei.pkl"
            write_source(path, arguments.items, ids)
            medians = compare(path, arguments.runs)
            print(f"ids as {name}, {path.stat().st_size / 1e6:.0f} MB")
            for clock, (plain, safe) in zip(("wall", "CPU"), medians, strict=True):
                print(
                    f"  {clock}: pickle {plain:.3f} s, safe_pickle {safe:.3f} s, "
                    f"ratio {safe / plain:.3f} (limit 1.15)"
                )


if __name__ == "__main__":
    main()
