"""All benchmarks, or some: figures beside their limits, as a table and as JSON.

    python tests/benchmarks [step simulated real_rounds …] [--json figures.json]

Run it on a machine that does nothing else; it says what the machine is. Each can be run alone, with
more to choose from: ``python tests/benchmarks/step.py --help``.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from figures import Figure, print_figures

#: In this order; each has a function `figures`.
NAMES = ["step", "payload", "loading", "aggregation", "tree", "simulated", "real_rounds", "predict"]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar=f"{{{','.join(NAMES)}}}")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if odd := [name for name in given.names if name not in NAMES]:
        parser.error(f"there is no benchmark {odd[0]}; there are {', '.join(NAMES)}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"{os.cpu_count()} cores ({platform.processor() or platform.machine()}), GPU: {gpu}")
    measured: list[Figure] = []
    for name in given.names:
        print(f"\n{name}", flush=True)
        measured += print_figures(__import__(name).figures())
    if given.json:
        rows = [asdict(figure) | {"state": figure.state} for figure in measured]
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
