"""All benchmarks, or some: figures beside their limits, as a table and as JSON.

    python tests/benchmarks [step rounds simulated …] [--json figures.json]

Run it on a machine that does nothing else; it says what the machine is. Each can be run alone, with
more to choose from: ``python tests/benchmarks/step.py --help``.
"""

import argparse
import os
import platform
from pathlib import Path

import torch
from figures import Figure, as_json, print_figures

#: In this order; each has a function `figures`.
NAMES = (
    "step",
    "payload",
    "loading",
    "aggregation",
    "tree",
    "simulated",
    "real_rounds",
    "predict",
)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar=f"{{{','.join(NAMES)}}}")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if odd := [name for name in given.names if name not in NAMES]:
        parser.error(f"there is no benchmark {odd[0]}; there are {', '.join(NAMES)}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"{os.cpu_count()} cores ({platform.processor() or platform.machine()}), GPU: {gpu}")
    found: list[Figure] = []
    for name in given.names:
        print(f"\n{name}", flush=True)
        for figure in __import__(name).figures():
            print_figures([figure])
            found.append(figure)
    if given.json:
        given.json.write_text(as_json(found) + "\n")


if __name__ == "__main__":
    main()
