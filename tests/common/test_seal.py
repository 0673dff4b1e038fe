"""Sealed files: what goes in comes out to the bit, and damage anywhere is detected."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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

SOME: Arrays = {"weight": np.arange(6.0).reshape(2, 3), "bias": np.zeros(0, np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.safetensors"


@settings(max_examples=40, deadline=None)
@given(ARRAYS, HEADERS)
def test_what_goes_in_comes_out_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, given: Arrays, header: dict[str, Any]
) -> None:
    paths = [tmp_path_factory.mktemp("seal") / "file" for _ in range(2)]
    written, again = (write_sealed(path, given, header) for path in paths)
    assert written == again
    assert paths[0].read_bytes() == paths[1].read_bytes()
    read_header, read, read_seal = read_sealed(paths[0])
    assert read_seal == written
    assert read_header == {"seal": written, **header}
    assert read.keys() == given.keys()
    for name, array in given.items():
        assert read[name].numpy().dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].numpy().tobytes() == array.tobytes()


def test_arrays_that_lie_otherwise_in_memory_keep_their_order(path: Path) -> None:
    square = np.arange(12.0).reshape(3, 4)
    write_sealed(path, {"turned": square.T, "every": square[::2, ::-1]}, {})
    read = read_sealed(path)[1]
    assert (read["turned"].numpy() == square.T).all()
    assert (read["every"].numpy() == square[::2, ::-1]).all()


def test_every_change_changes_the_seal(path: Path) -> None:
    weight, bias = SOME["weight"], SOME["bias"]
    changed = [
        *((SOME, header) for header in ({}, {"round": 1}, {"round": 2})),
        ({**SOME, "bias": np.zeros(0)}, {}),
        ({**SOME, "weight": weight.reshape(3, 2)}, {}),
        ({**SOME, "weight": -weight}, {}),
        ({"weights": weight, "bias": bias}, {}),
    ]
    assert len({write_sealed(path, *each) for each in changed}) == len(changed)


def test_every_flipped_byte_and_every_truncation_is_detected(path: Path) -> None:
    write_sealed(path, SOME, {"round": 3, "name": "ünïcode"})
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for position in range(len(whole)):
        damaged[position] ^= (0x01, 0x20, 0x80, 0xFF)[position % 4]
        for content in (damaged, whole[:position]):
            path.write_bytes(content)
            with pytest.raises(SealError):
                read_sealed(path)
        damaged[position] = whole[position]
    path.write_bytes(whole)
    assert read_sealed(path)[0]["round"] == 3


def test_damage_far_into_a_large_file_and_behind_its_end_is_detected(path: Path) -> None:
    write_sealed(path, {"zeros": np.zeros(3 << 20, np.float32)}, {})
    whole = path.read_bytes()
    for content in (whole[: -(1 << 20)] + b"\1" + whole[1 - (1 << 20) :], whole + b"\0", whole * 2):
        path.write_bytes(content)
        with pytest.raises(SealError, match="is damaged: its bytes do not match its seal"):
            read_sealed(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_else_a_file_holds_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("other") / "file"
    path.write_bytes(content)
    with pytest.raises(NotSealedError):
        read_sealed(path)


def test_a_file_without_a_seal_and_a_folder_are_not_damaged(path: Path) -> None:
    save_file(dict(SOME), path, metadata={"ha-fedformer": "{}"})
    for place, words in ((path, "has no seal"), (path.parent, "is a folder")):
        with pytest.raises(NotSealedError, match=words):
            read_sealed(place)


def test_a_right_seal_on_no_arrays_is_refused(path: Path) -> None:
    written = write_sealed(path, SOME, {})
    content = path.read_bytes()
    # As long as before, and no JSON any more; then sealed again.
    nonsense = content.replace(b'"dtype":"F64"', b'"dtype":"F99"', 1)
    assert nonsense != content
    path.write_bytes(nonsense.replace(written.encode(), b"0" * 64))
    seal(path)
    with pytest.raises(SealError, match="cannot be read"):
        read_sealed(path)


def test_a_file_that_is_missing_or_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "nothing")
    with pytest.raises(OSError, match="No such file"):
        write_sealed(tmp_path / "no folder" / "file", SOME, {})
