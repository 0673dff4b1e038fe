"""What tests of data check with: refusals of one line, equality to the bit, other processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.data.dataset import MultimodalDataset, Sequences
from common.errors import UserError

ROOT = Path(__file__).parents[3]


def refusal(call: Callable[[], object], *words: object) -> str:
    """Return the one line with which a call is refused, after looking for words in it."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert str(word) in message, message
    return message


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


def run_python(program: str, *arguments: object, **environment: str) -> str:
    """Return what a program prints in a process of its own, which must not complain."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout
