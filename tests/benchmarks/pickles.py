"""Pickles as large as CMU-MOSEI: `utmp-prepare` of one, and the safe reader beside plain pickle.

    python tests/benchmarks/pickles.py [--items 22800] [--runs 5] [--folder DIR]

Writes random features as MultiBench lays them out (left-padded, widths 300, 74 and 35, 50 steps,
float32). Prepares them with 9 clients: seconds, and peak memory beside the size of the source. Then
loads a quarter as many items by `common.data.safe_pickle` and by pickle in turn, with ids as text
and as an object array of bytes: the ratio of the medians, in seconds and in CPU seconds.
"""

import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from figures import BIN, Figure, in_a_process, main, run_command

from common.data import safe_pickle

STEPS = 50
WIDTHS = {"text": 300, "audio": 74, "vision": 35}
SHARES = {"train": 0.715, "valid": 0.082, "test": 0.203}


def write_source(path: Path, items: int, ids: str = "text") -> None:
    """Write a pickle, with a split at a time in memory."""
    rng = np.random.default_rng(0)
    content, first = {}, 0
    for name, share in SHARES.items():
        count = round(items * share)
        padding = np.arange(STEPS) < STEPS - rng.integers(5, STEPS + 1, size=(count, 1))
        split: dict[str, object] = {}
        for key, width in WIDTHS.items():
            values = rng.standard_normal((count, STEPS, width), dtype=np.float32)
            values[padding] = 0
            split[key] = values
        split["labels"] = rng.uniform(-3, 3, size=(count, 1, 1)).astype(np.float32)
        places = [divmod(item, 7) for item in range(first, first + count)]
        if ids == "text":
            split["id"] = [f"video{video}[{segment}]" for video, segment in places]
        else:
            rows = [(f"video{v}".encode(), b"%.1f" % s, b"%.1f" % (s + 1)) for v, s in places]
            split["id"] = np.array(rows, dtype=object)
        content[name] = split
        first += count + 7
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=4)


def plain_load(path: Path) -> object:
    """Load without any check; the file is our own."""
    with path.open("rb") as file:
        return pickle.load(file)


def clocks(load: Callable[[Path], object], path: Path) -> tuple[float, float]:
    """Return wall and CPU seconds of one load; what it made is freed afterwards."""
    began, used = time.perf_counter(), time.process_time()
    content = load(path)
    elapsed = time.perf_counter() - began, time.process_time() - used
    del content
    return elapsed


def figures(
    items: int = 22_800, runs: int = 5, folder: str = tempfile.gettempdir()
) -> Iterator[Figure]:
    """Prepare, then load."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source = Path(place) / "mosei.pkl"
        in_a_process(write_source, source, items)
        size = source.stat().st_size / 1e6
        ran = run_command(BIN / "utmp-prepare", f"path={source}", f"out={place}/shards")
        yield Figure(f"prepare {items:,} items, {size:.0f} MB", ran.seconds, "s", cpu=ran.cpu)
        yield Figure("the same: peak memory", ran.megabytes, "MB", 2.5 * size, "2.5 sources")
        for ids in ("text", "bytes"):
            write_source(source, items // 4, ids)
            plain, safe = [], []
            for _ in range(runs + 1):
                plain.append(clocks(plain_load, source))
                safe.append(clocks(safe_pickle.load, source))
            # The first of each warms up.
            ratios = np.median(safe[1:], axis=0) / np.median(plain[1:], axis=0)
            for clock, ratio in zip(("seconds", "CPU seconds"), ratios, strict=True):
                yield Figure(
                    f"safe against plain load, ids as {ids}: {clock}", ratio, "", 1.15, "15 % more"
                )


if __name__ == "__main__":
    main(figures)
