"""Time and peak memory of `utmp-prepare` on a source as large as CMU-MOSEI.

    python tests/benchmarks/prepare.py [--items 22800] [--folder DIR]

Writes a pickle of random features as MultiBench lays it out (left-padded, widths 300, 74 and 35,
50 steps, float32), prepares it with 9 clients, and prints seconds, CPU seconds, and the peak
resident memory beside the size of the source.
"""

import argparse
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from figures import BIN, run_command

STEPS = 50
WIDTHS = {"text": 300, "audio": 74, "vision": 35}
SHARES = {"train": 0.715, "valid": 0.082, "test": 0.203}


def write_source(path: Path, items: int) -> None:
    """Write the pickle, a split at a time in memory."""
    rng = np.random.default_rng(0)
    content, first = {}, 0
    for name, share in SHARES.items():
        count = round(items * share)
        lengths = rng.integers(5, STEPS + 1, size=count)
        padding = np.arange(STEPS) < STEPS - lengths[:, None]
        split: dict[str, object] = {}
        for key, width in WIDTHS.items():
            values = rng.standard_normal((count, STEPS, width), dtype=np.float32)
            values[padding] = 0
            split[key] = values
        split["labels"] = rng.uniform(-3, 3, size=(count, 1, 1)).astype(np.float32)
        split["id"] = [f"video{(first + item) // 7}[{(first + item) % 7}]" for item in range(count)]
        content[name] = split
        first += count + 7
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=4)


def main() -> None:
    """Write, prepare, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=22_800)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "mosei.pkl"
        # In a process of its own: its memory must not count.
        writer = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import prepare"
        call = f"prepare.write_source(prepare.Path({str(source)!r}), {arguments.items})"
        subprocess.run([sys.executable, "-c", f"{writer}; {call}"], check=True)
        size = source.stat().st_size
        print(f"source: {size / 1e9:.2f} GB, {arguments.items} items")
        ran = run_command(BIN / "utmp-prepare", f"path={source}", f"out={folder}/shards")
        print(f"seconds: {ran.seconds:.1f} wall, {ran.cpu:.1f} CPU")
        peak = ran.megabytes * 1e6
        print(f"peak memory: {peak / 1e9:.2f} GB, {peak / size:.2f} times the source (limit 2.5)")


if __name__ == "__main__":
    main()
