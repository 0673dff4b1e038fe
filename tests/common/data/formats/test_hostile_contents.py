"""Small files that ask for much memory, or hold what only a hostile or damaged file does."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from common.data.formats.registry import FORMATS, Given, check_format
from common.data.source import ReadSettings
from common.errors import UserError

check_format("auto")
SETTINGS = ReadSettings()
AGAIN = "items whose id occurred before, dropped"


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A file of 100 bytes; what it holds is given apart."""
    path = tmp_path / "data.pkl"
    path.write_bytes(bytes(100))
    return path


def split(**other: Any) -> dict[str, Any]:
    made = {
        "text": np.ones((3, 4, 3), np.float32),
        "audio": np.ones((3, 4, 2), np.float32),
        "labels": np.zeros((3, 1)),
        "id": [f"v[{item}]" for item in range(3)],
    }
    return made | other


def write_csd(path: Path, name: str, segment: str, features: Any, intervals: Any) -> Path:
    with h5py.File(path, "w") as file:
        file[f"{name}/data/{segment}/features"] = features
        file[f"{name}/data/{segment}/intervals"] = intervals
    return path


def signalling(kind: str, *shape: int) -> np.ndarray:
    """Make signalling NaN, which casts warn of."""
    bits = {"f4": 0x7FA00000, "f8": 0x7FF4000000000000}[kind]
    return np.full(shape, bits, kind.replace("f", "u")).view(kind)


# ---- Pickles --------------------------------------------------------------------------


def test_one_split_of_two_names(pickled: Path) -> None:
    one = split()
    source = FORMATS["multibench"].read(Given([pickled], {"train": one, "test": one}), SETTINGS)
    assert source.splits.tolist() == ["train"] * 3
    assert source.items.cleaning == {AGAIN: 3}


@pytest.mark.parametrize(("key", "element"), [("audio", np.ones((40, 200))), ("id", "x" * 1000)])
def test_one_value_that_is_named_many_times(pickled: Path, key: str, element: Any) -> None:
    content = {"train": split(**{key: [element] * 1_000_000})}
    with pytest.raises(UserError, match="GiB of contents"):
        FORMATS["multibench"].read(Given([pickled], content), SETTINGS)


@pytest.mark.parametrize("shape", [(3, 7, 1), (3, 1, 1, 1)])
def test_labels_whose_last_axis_is_one_too_many(pickled: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="'labels' has the shape"):
        FORMATS["multibench"].read(
            Given([pickled], {"train": split(labels=np.zeros(shape))}), SETTINGS
        )


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_a_signalling_nan_is_one_like_any(pickled: Path, kind: str) -> None:
    labels = signalling(kind, 3)
    labels[1] = 1
    content = {"train": split(audio=signalling(kind, 3, 4, 2), labels=labels)}
    items = FORMATS["multibench"].read(Given([pickled], content), SETTINGS).items
    assert items.ids.tolist() == ["v[1]"]
    assert items.not_finite() == {"audio values not finite, set to the mean": 8}


def test_a_label_too_large_for_any_number(pickled: Path) -> None:
    labels = np.array([np.longdouble("1e4000"), 1, 2])
    with pytest.raises(UserError, match="too large"):
        FORMATS["multibench"].read(Given([pickled], {"train": split(labels=labels)}), SETTINGS)


# ---- Computational sequences and tables -----------------------------------------------


def test_a_small_file_that_declares_huge_chunks(tmp_path: Path) -> None:
    write_csd(tmp_path / "labels.csd", "All Labels", "v[0]", [[1.0]], [[0.0, 1.0]])
    with h5py.File(tmp_path / "a.csd", "w") as file:
        file["covarep/data/v[0]/intervals"] = np.zeros((3, 2))
        file["covarep/data/v[0]"].create_dataset(
            "features",
            (3, 2),
            "f4",
            chunks=(600, 1 << 20),
            maxshape=(None, None),
            compression="gzip",
        )
    with pytest.raises(UserError, match="GiB of contents"):
        FORMATS["csd"].read(Given([tmp_path]), SETTINGS)


def test_labels_that_take_the_same_steps_over_and_over(tmp_path: Path) -> None:
    count = 3000
    intervals = np.tile([[0, 1e9]], (count, 1))
    write_csd(tmp_path / "labels.csd", "All Labels", "v", np.ones((count, 1)), intervals)
    steps = np.ones((50_000, 3), np.float32)
    write_csd(tmp_path / "a.csd", "covarep", "v", steps, np.ones((50_000, 2)))
    with pytest.raises(UserError, match="GiB of contents"):
        FORMATS["csd"].read(Given([tmp_path]), SETTINGS)


def test_the_name_of_a_sequence_tells_labels_before_that_of_a_file(tmp_path: Path) -> None:
    write_csd(tmp_path / "labels.csd", "All Labels", "v[0]", [[1.0]], [[0.0, 1.0]])
    write_csd(tmp_path / "labelled_audio.csd", "covarep", "v[0]", [[1.0]], [[0.0, 1.0]])
    assert list(FORMATS["csd"].read(Given([tmp_path]), SETTINGS).items.sequences) == ["audio"]


def test_a_name_that_is_no_identifier(tmp_path: Path) -> None:
    write_csd(tmp_path / "labels.csd", "All Labels", "v[0]", [[1.0]], [[0.0, 1.0]])
    write_csd(tmp_path / "x.csd", "my² é", "v[0]", [[1.0]], [[0.0, 1.0]])
    assert list(FORMATS["csd"].read(Given([tmp_path]), SETTINGS).items.sequences) == ["my___"]


def test_signalling_nan_in_other_formats(tmp_path: Path) -> None:
    write_csd(tmp_path / "labels.csd", "All Labels", "v[0]", [[1.0]], [[0.0, 1.0]])
    write_csd(tmp_path / "a.csd", "covarep", "v[0]", signalling("f8", 1, 2), [[0.0, 1.0]])
    assert FORMATS["csd"].read(Given([tmp_path]), SETTINGS).items.not_finite()
    np.save(tmp_path / "audio.npy", signalling("f8", 1, 2, 2))
    (tmp_path / "items.csv").write_text("label\n1\n")
    assert FORMATS["table"].read(Given([tmp_path / "items.csv"]), SETTINGS).items.not_finite()
