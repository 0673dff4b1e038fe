"""Requests become arrays, or are refused with one line that names the item and the field."""

import json
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException

from common.errors import UserError
from server.service.requests import Item, RequestReader

#: Language and audio are sequences; a table has four steps of one number.
SHAPES: dict[str, tuple[int, ...]] = {"language": (3,), "audio": (2,), "table": (4, 1)}


def reader(
    features: Mapping[str, tuple[int, ...]] = SHAPES, last_steps: int | None = None, **limits: int
) -> RequestReader:
    limits = {"max_items": 3, "max_steps": 6, "max_body_bytes": 0} | limits
    return RequestReader(features, last_steps, **limits)


def of(*items: Any, **others: Any) -> bytes:
    return json.dumps({"items": items, **others}).encode()


def read(*items: dict[str, Any], last_steps: int | None = None, **others: Any) -> list[Item]:
    return reader(last_steps=last_steps).read(of(*items, **others))


def test_items_of_different_modalities() -> None:
    first, second, third = read(
        {"id": "a", "audio": [[1, 2], [3.5, -4e2]]},
        {"language": [[1, 2, 3]], "audio": None},
        {"id": "", "audio": [[5, 6]], "language": [[7, 8, 9], [1, 2, 3]]},
    )
    assert (first.id, second.id, third.id) == ("a", "1", "")
    assert (first.steps, second.steps, third.steps) == (2, 1, 2)
    assert first.features["audio"].dtype == np.float32
    assert first.features["audio"].tolist() == [[1, 2], [3.5, -400]]
    assert list(second.features) == ["language"]
    assert list(third.features) == ["language", "audio"]  # in the model's order


def test_only_chosen_modalities_and_last_steps_are_used() -> None:
    (item,) = read({"audio": [[1, 2]], "language": [[1, 2, 3]]}, modalities=["audio"])
    assert list(item.features) == ["audio"]
    (item,) = read({"audio": [[n, n] for n in range(5)]}, last_steps=2)
    assert item.features["audio"].tolist() == [[3, 3], [4, 4]]
    # The last of two equal keys counts.
    (item,) = reader().read(b'{"items": [{"id": "a", "id": "b", "audio": [[1, 2]]}]}')
    assert item.id == "b"


def test_names_of_modalities() -> None:
    names = ("class", "items", "model_dump", "_own")
    odd = reader(dict.fromkeys(names, (1,)))
    (item,) = odd.read(json.dumps({"items": [{name: [[1]] for name in names}]}).encode())
    assert tuple(item.features) == names
    with pytest.raises(UserError, match="the model has a modality 'id'"):
        reader({"id": (1,)})


FINE = {"audio": [[1, 2]]}
NOT_JSON = "the body is not JSON: "


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"items": [', 400, "EOF while parsing a list"),
        (b"\xef\xbb\xbf{}", 400, "expected value at line 1"),
        (b'{"items": []} x', 400, "trailing characters"),
        (b'{"items": [{"id": "\xff"}]}', 400, "invalid unicode"),
        (b'{"items": [{"id": "\\ud800", "audio": [[1, 2]]}]}', 400, "unexpected end of hex escape"),
        (b'{"items": [{"audio": [[1, ' + b"9" * 100_000 + b"]]}]}", 400, "number out of range"),
        (b"[" * 100_000, 422, "the body has more lists than rows of numbers need"),
        (
            b'{"items": [{"audio": ' + b"[" * 99_999 + b"]" * 99_999,
            422,
            "the body has more lists than rows",
        ),
        (b'{"items": [' + b"[]," * 9_999 + b"[]]}", 422, "the body has more lists than rows"),
        (b'{"items": [' + b'{"":0},' * 9_999 + b"{}]}", 413, "the body has more objects than"),
        (b"[]", 422, "the body: input should be an object"),
        (b"{}", 422, "items: field required"),
        (of(FINE, itemz=1), 422, "itemz: extra inputs are not permitted"),
        (of(), 422, "items: list should have at least 1 item after validation, not 0"),
        (of(*[FINE] * 4), 413, "items: list should have at most 3 items"),
        (b'{"items": [{"audio": [[NaN, null]]}]}', 422, "items[0] has none of language, audio"),
        (
            b'{"items": [{"audio": [[1, 1e999]]}]}',
            422,
            "items[0].audio[0]: value error, expected n",
        ),
        (of(FINE, modalities="audio"), 422, "modalities: input should be a valid array"),
        (of(FINE, modalities=[]), 422, "modalities: list should have at least 1 item after"),
        (of(FINE, modalities=["x"]), 422, "modalities[0]: input should be 'language', 'audio' or"),
        (of(FINE, modalities=["table"]), 422, "items[0] has none of table"),
        # What is not used is validated too.
        (of(FINE | {"table": 1}, modalities=["audio"]), 422, "items[0].table: input should be a"),
    ],
)
def test_a_body_that_is_refused(body: bytes, status: int, message: str) -> None:
    with pytest.raises(HTTPException) as raised:
        reader().read(body)
    assert raised.value.status_code == status
    start = NOT_JSON if status == 400 else message
    assert raised.value.detail.startswith(start) and message in raised.value.detail


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (1, ": input should be an object"),
        ({"audio": None}, " has none of language, audio, table"),
        ({"smell": [[1]]}, ".smell: extra inputs are not permitted"),
        ({"id": 7, "audio": [[1, 2]]}, ".id: input should be a valid string"),
        ({"audio": {}}, ".audio: input should be a valid array"),
        ({"audio": [1, 2]}, ".audio[0]: input should be a valid array"),
        ({"audio": [[None, None]]}, " has none of language, audio, table"),
        ({"audio": [[1, True]]}, ".audio[0][1]: input should be a valid number"),
        ({"audio": [[1, "2"]]}, ".audio[0][1]: input should be a valid number"),
        ({"audio": []}, ".audio: list should have at least 1 item after validation, not 0"),
        ({"audio": [[1, 2], [1]]}, ".audio[1]: list should have at least 2 items"),
        ({"audio": [[1, 2], [1, 2, 3]]}, ".audio[1]: list should have at most 2 items"),
        ({"audio": [[1, 2]] * 7}, ".audio: list should have at most 6 items"),
        ({"table": [[1]] * 5}, ".table: list should have at most 4 items"),
        ({"audio": [[1, 2], [1, -3.5e38]]}, ".audio[1]: value error, expected numbers of at most"),
    ],
)
def test_an_item_that_does_not_fit_the_model(item: Any, message: str) -> None:
    with pytest.raises(HTTPException) as raised:
        read(FINE, item)
    assert raised.value.status_code == 422
    assert raised.value.detail.startswith(f"items[1]{message}")


def test_a_number_that_is_not_known_is_null() -> None:
    """NaN, as Python writes it, too; it becomes NaN, and is counted."""
    known, item = read(FINE, {"audio": [[1, None], [float("nan"), 4]], "language": [[None] * 3]})
    assert known.unknown == {} and item.unknown == {"audio": 2}
    np.testing.assert_array_equal(item.features["audio"], [[1, np.nan], [np.nan, 4]])
    assert list(item.features) == ["audio"]


def peak_memory(reader: RequestReader, body: bytes) -> int:
    """Bytes at most while a body is read, whether it is refused or not."""
    tracemalloc.start()
    with suppress(HTTPException):
        reader.read(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_validation_stops_at_the_first_mistake() -> None:
    body = b'{"items": [{"audio": [' + b'["x", "x"],' * 100_000 + b"[1, 2]]}]}"
    assert peak_memory(reader(), body) < 1 << 20


def test_many_numbers_take_little_memory() -> None:
    row = b"[" + b",".join([b"0"] * 100) + b"]"
    body = b'{"items": [{"audio": [' + b",".join([row] * 2_000) + b"]}]}"
    roomy = reader({"audio": (100,)}, max_steps=10_000)
    assert roomy.read(body)[0].features["audio"].shape == (2_000, 100)
    # As lists of Python's floats they would be 16 times the body.
    assert peak_memory(roomy, body) < 8 * len(body)
