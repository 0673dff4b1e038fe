"""The identity of an extractor: equal for equal settings, refused where it was changed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from data_checks import refusal

from common.data.extractor import (
    FILE,
    MAX_IDENTITY,
    Extractor,
    extractors_json,
    identities,
    read_extractors,
)

MEL = Extractor("log-mel", "1", {"rate": 16000, "sizes": [1, 2]})


def test_equal_settings_have_equal_identities() -> None:
    same = Extractor("log-mel", "1", {"sizes": (1, 2), "rate": 16000})
    assert same.hash == MEL.hash and len(MEL.hash) == 64
    assert MEL.identity == f"log-mel 1 ({MEL.hash[:12]})"
    for other in (("mel", "1", MEL.settings), ("log-mel", "2", MEL.settings), ("log-mel", "1", {})):
        assert Extractor(*other).hash != MEL.hash
    longest = Extractor("x" * (MAX_IDENTITY - 17), "1", {})
    assert len(longest.identity) <= MAX_IDENTITY


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_extractors(tmp_path) == {}
    (tmp_path / FILE).write_bytes(extractors_json({"audio": MEL}))
    assert read_extractors(tmp_path)["audio"].identity == MEL.identity
    # By the file of arrays, whatever the modality is called here.
    files = {"sound": tmp_path / "audio.npz", "language": tmp_path / "language.npz"}
    assert identities(files) == {"sound": MEL.identity}


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"rate": 8000}},
        {"hash": "0" * 64},
        {"name": 3},
        {"name": "x" * 200, "hash": ""},
    ],
)
def test_one_changed_by_hand_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    content = json.loads(extractors_json({"audio": MEL}))
    content["audio"] |= change
    (tmp_path / FILE).write_text(json.dumps(content))
    refusal(lambda: read_extractors(tmp_path), f"{tmp_path / FILE} is damaged: ", "audio")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    refusal(lambda: read_extractors(tmp_path), "is damaged: ", "extract them again")
