"""NumPy loads a source, deals its items out at random, and writes each part with `np.savez`."""

import pickle
import sys
from pathlib import Path

import numpy as np

source, out = Path(sys.argv[1]), Path(sys.argv[2])
names = ("text", "audio", "vision")
if source.suffix == ".npz":
    with np.load(source) as file:
        arrays, labels = {name: file[name] for name in names}, file["label"]
else:
    with source.open("rb") as pickled:
        splits = list(pickle.load(pickled).values())
    arrays = {name: np.concatenate([part.pop(name) for part in splits]) for name in names}
    labels = np.concatenate([part["labels"] for part in splits])
order = np.random.default_rng(0).permutation(len(labels))
train, validation, test = np.split(order, [int(0.7 * len(order)), int(0.8 * len(order))])
for number, own in enumerate(np.array_split(train, 9)):
    name = names[number % 3]
    np.savez(out / f"{name}-{number // 3}.npz", label=labels[own], values=arrays[name][own])
for side, own in (("validation", validation), ("test", test)):
    np.savez(out / f"{side}.npz", label=labels[own], **{n: arrays[n][own] for n in names})
