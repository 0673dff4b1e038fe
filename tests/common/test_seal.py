"""Sealed files: what goes in comes out to the bit, and damage anywhere is told."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from safetensors.numpy import save_file

from common.seal import NotSealedError, SealError, read_sealed, seal, write_sealed

Arrays = Mapping[str, NDArray[Any]]

TYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "i1", "u1", "?")
ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter("__metadata__".__ne__),
    st.sampled_from(TYPES).flatmap(
        lambda kind: arrays(kind, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=4,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each),
    max_leaves=6,
)
HEADERS = st.dictionaries(st.text(max_size=6).filter("seal".__ne__), VALUES, max_size=4)

_SEALED = re.compile(rb'(\\"seal\\": \\")[0-9a-f]{64}')

SOME: Arrays = {"weight": np.arange(6.0).reshape(2, 3), "bias": np.zeros(0, np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.safetensors"


@settings(max_examples=40, deadline=None)
@given(ARRAYS, HEADERS)
def test_what_goes_in_comes_out_to_the_bit(given: Arrays, header: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        written = write_sealed(path, given, header)
        found_header, found, found_seal = read_sealed(path)
    assert found_seal == written
    assert found_header == {"seal": written, **header}
    assert found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].numpy().dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].numpy().tobytes() == array.tobytes()


@settings(max_examples=20, deadline=None)
@given(ARRAYS, HEADERS)
def test_the_same_gives_the_same_bytes(given: Arrays, header: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("one", "two")]
        seals = [write_sealed(path, given, header) for path in paths]
        contents = [path.read_bytes() for path in paths]
    assert contents[0] == contents[1]
    assert seals[0] == seals[1]


def test_numbers_of_no_value_keep_their_bits(path: Path) -> None:
    bits = np.array([0x7FC00001, 0xFF800000, 0x80000000, 1], dtype=np.uint32)
    write_sealed(path, {"odd": bits.view(np.float32)}, {})
    assert (read_sealed(path)[1]["odd"].view(torch.int32).numpy().view(np.uint32) == bits).all()


def test_arrays_that_lie_otherwise_in_memory_keep_their_order(path: Path) -> None:
    square = np.arange(12.0).reshape(3, 4)
    write_sealed(path, {"turned": square.T, "every": square[::2, ::-1]}, {})
    found = read_sealed(path)[1]
    assert (found["turned"].numpy() == square.T).all()
    assert (found["every"].numpy() == square[::2, ::-1]).all()


def test_every_change_changes_the_seal(path: Path) -> None:
    changed = [
        (SOME, {}),
        (SOME, {"round": 1}),
        (SOME, {"round": 2}),
        ({**SOME, "bias": np.zeros(0)}, {}),
        ({**SOME, "weight": SOME["weight"].reshape(3, 2)}, {}),
        ({**SOME, "weight": -SOME["weight"]}, {}),
        ({"weights": SOME["weight"], "bias": SOME["bias"]}, {}),
    ]
    assert len({write_sealed(path, *each) for each in changed}) == len(changed)


# Damage -----------------------------------------------------------------------------------------


def test_every_flipped_byte_is_told(path: Path) -> None:
    write_sealed(path, SOME, {"round": 3, "name": "ünïcode"})
    whole = path.read_bytes()
    for position in range(len(whole)):
        for mask in (0x01, 0x20):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            with pytest.raises(SealError):
                read_sealed(path)
    path.write_bytes(whole)
    assert read_sealed(path)[0]["round"] == 3


def test_truncation_at_any_length_is_told(path: Path) -> None:
    write_sealed(path, SOME, {"round": 3})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SealError):
            read_sealed(path)


@pytest.mark.parametrize("more", [b"\0", b"x" * 100])
def test_bytes_behind_the_end_are_told(path: Path, more: bytes) -> None:
    write_sealed(path, SOME, {})
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(SealError, match="is damaged: its bytes do not match its seal"):
        read_sealed(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_else_a_file_holds_is_refused(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        with pytest.raises(NotSealedError):
            read_sealed(path)


def test_a_file_without_a_seal_and_a_folder_are_told_apart_from_damage(
    path: Path, tmp_path: Path
) -> None:
    save_file(dict(SOME), path, metadata={"ha-fedformer": "{}"})
    with pytest.raises(NotSealedError, match="has no seal"):
        read_sealed(path)
    with pytest.raises(NotSealedError, match="is a folder"):
        read_sealed(tmp_path)


def test_a_right_seal_on_no_arrays_is_refused(path: Path) -> None:
    write_sealed(path, SOME, {})
    content = path.read_bytes()
    # As long as before, and no JSON any more; then sealed again.
    nonsense = content.replace(b'"dtype":"F64"', b'"dtype":"F99"', 1)
    assert nonsense != content
    path.write_bytes(_SEALED.sub(rb"\g<1>" + b"0" * 64, nonsense))
    seal(path)
    with pytest.raises(SealError, match="cannot be read"):
        read_sealed(path)


def test_a_file_that_is_not_there_or_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "nothing")
    with pytest.raises(OSError, match=os.strerror(2)):
        write_sealed(tmp_path / "no folder" / "file", SOME, {})
