"""What tests of data share: distinct items, manifests, refusals of one line, files, equality."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.data.dataset import MultimodalDataset, Sequences
from common.data.manifest import Manifest
from common.data.shards import VERSION
from common.data.source import Reading
from common.errors import UserError
from common.task import Task

ROOT = Path(__file__).parents[3]

GROUPS, PER_GROUP, STEPS = 30, 3, 4
ITEMS = GROUPS * PER_GROUP
WIDTHS = {"audio": 2, "vision": 3}


def values_of(items: np.ndarray, width: int) -> np.ndarray:
    """Features that tell, in their first column, which item and step they are from."""
    steps = items[:, None] * 100 + np.arange(STEPS)
    rest = np.random.default_rng(0).normal(size=(len(items), STEPS, width - 1))
    return np.concatenate([steps[..., None], rest], axis=2).astype(np.float32)


def write_items(path: Path, first: int = 0, number: int = ITEMS, **arrays: Any) -> Path:
    """Write an ``.npz`` of items numbered from `first`; None takes an array out.

    The label is the number, and a group, a video, is three in a row.
    """
    items = np.arange(first, first + number)
    modalities = {name: values_of(items, width) for name, width in WIDTHS.items()}
    content = {"label": items.astype(float), "video": items // PER_GROUP, **modalities, **arrays}
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def labels_for(task: Task, count: int) -> np.ndarray:
    """Labels of any task; of classes and of several labels there are three."""
    numbers = np.arange(count)
    match task:
        case Task.regression:
            return numbers / 8
        case Task.classification:
            return numbers % 3
        case Task.multilabel:
            return (numbers[:, None] % [2, 3, 5] == 0).astype(np.float32)


def make_items(
    sequences: Mapping[str, Sequences],
    labels: Any = None,
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    names: Sequence[str] = (),
) -> MultimodalDataset:
    """Items of some sequences; unless told, each has label 1 and a group of its own."""
    count = len(next(iter(sequences.values())))
    own = np.array([f"ü{item}" for item in range(count)] if ids is None else ids)
    labels = np.ones(count) if labels is None else labels
    grouped = own if groups is None else np.array(groups)
    return MultimodalDataset(own, grouped, labels, dict(sequences), label_names=tuple(names))


def manifest_of(*names: str, **changes: Any) -> Manifest:
    """A manifest that lists shards by name; the seal of a shard is its name twice."""
    made = Manifest(
        version=VERSION,
        source={"format": "npz", "why": "", "files": [{"name": "größe.npz", "bytes": 3}]},
        task=Task.multilabel,
        outputs=3,
        label_names=("joy", "größe", '"'),
        modalities={"vision": {"width": 3}, "audio": {"width": 2}},
        sides={"train": {"items": 4}, "validation": {"items": 0}, "test": {"items": 1}},
        settings={"seed": 1, "clients": {"default": None}, "partition": {"alpha": 0.5}},
        reading=Reading(50, 9, "video", ("joy",), extractors={"audio": "log-mel 1 (0123)"}),
        cleaning={"items without a label": 2},
        warnings=("two groups are on both sides",),
        shards={f"{name}.safetensors": {"seal": name * 2, "items": 1} for name in names},
    )
    return replace(made, **changes)


def refusal(call: Callable[[], object], *words: object) -> str:
    """Return the one line with which a call is refused, after looking for words in it."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert str(word) in message, message
    return message


def files(folder: Path) -> dict[str, bytes]:
    """All that is below a folder; nothing if it is not there."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_same_sequences(actual: Sequences, expected: Sequences) -> None:
    """Equal to the bit, item by item."""
    assert actual.tabular == expected.tabular
    assert actual.values.dtype == expected.values.dtype
    assert actual.lengths.tolist() == expected.lengths.tolist()
    assert len(actual) == len(expected)
    for item in range(len(expected)):
        assert actual[item].shape == expected[item].shape
        assert actual[item].tobytes() == expected[item].tobytes()


def assert_same(actual: MultimodalDataset, items: MultimodalDataset) -> None:
    """Equal to the bit."""
    assert actual.ids.tolist() == items.ids.tolist()
    assert actual.groups.tolist() == items.groups.tolist()
    assert actual.labels.dtype == items.labels.dtype
    assert actual.labels.shape == items.labels.shape
    assert actual.labels.tobytes() == items.labels.tobytes()
    assert actual.label_names == items.label_names
    assert list(actual.sequences) == list(items.sequences)
    for name, expected in items.sequences.items():
        assert actual.sequences[name].statistics_shape == expected.statistics_shape
        assert_same_sequences(actual.sequences[name], expected)


PREAMBLE = """
import resource, sys
from pathlib import Path
from common.errors import UserError

def memory(kind="VmHWM"):
    # Of this process alone, in MiB: what getrusage tells includes what it was forked from.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024
"""


def run_python(program: str, *arguments: object, **environment: str) -> str:
    """Return what a program prints after the preamble, in a process that must not complain."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout
