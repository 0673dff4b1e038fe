"""What a request may hold, and the line that says what is wrong with it."""

import json
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest

from common.errors import UserError
from server.service.refusal import RefusedError
from server.service.requests import Question, RequestReader

FEATURES: dict[str, tuple[int, ...]] = {"language": (3,), "audio": (2,), "table": (4, 1)}
TAKES = "id, language, audio, table"


def reader(last_steps: int | None = None) -> RequestReader:
    return RequestReader(FEATURES, last_steps, max_items=3, max_steps=6)


def read(*items: dict[str, Any], last_steps: int | None = None, **others: Any) -> Question:
    body = json.dumps({"items": items, **others}).encode()
    return reader(last_steps).read(body)


def refusal(body: bytes) -> tuple[int, str]:
    with pytest.raises(RefusedError) as raised:
        reader().read(body)
    assert "\n" not in str(raised.value)
    return raised.value.status, str(raised.value)


def refused(*items: Any, **others: Any) -> str:
    status, message = refusal(json.dumps({"items": items, **others}).encode())
    assert status == 422
    return message


# What is read -----------------------------------------------------------------------------------


def test_items_of_different_modalities() -> None:
    asked = read(
        {"id": "a", "audio": [[1, 2], [3.5, -4e2]]},
        {"language": [[1, 2, 3]], "audio": None},
        {"id": "", "language": [[7, 8, 9]], "audio": [[5, 6]]},
    )
    assert asked.ids == ("a", "1", "")
    assert list(asked.items) == ["language", "audio"]  # in the model's order
    audio, language = asked.items["audio"], asked.items["language"]
    assert audio.lengths.tolist() == [2, 0, 1] and language.lengths.tolist() == [0, 1, 1]
    assert audio.values.dtype == np.float32
    assert audio[0].tolist() == [[1, 2], [3.5, -400]] and audio[2].tolist() == [[5, 6]]
    assert audio[1].shape == (0, 2)
    assert asked.longest.tolist() == [2, 1, 1]


def test_some_of_the_items() -> None:
    asked = read(*({"id": str(n), "audio": [[n, n]]} for n in range(3)))
    some = asked.select(slice(1, 3))
    assert some.ids == ("1", "2") and len(some) == 2
    assert some.items["audio"][0].tolist() == [[1, 1]]


def test_only_what_may_be_used_is_read() -> None:
    asked = read({"audio": [[1, 2]], "language": [[1, 2, 3]]}, modalities=["audio"])
    assert list(asked.items) == ["audio"]


def test_the_last_steps_count() -> None:
    asked = read({"audio": [[n, n] for n in range(5)]}, last_steps=2)
    assert asked.items["audio"][0].tolist() == [[3, 3], [4, 4]]


def test_the_same_key_twice_counts_once() -> None:
    asked = reader().read(b'{"items": [{"id": "a", "id": "b", "audio": [[1, 2]]}]}')
    assert asked.ids == ("b",)


def test_a_modality_may_be_called_as_a_word_of_python() -> None:
    asked = RequestReader({"class": (1,), "items": (1,)}, None, 9, 9).read(
        b'{"items": [{"class": [[1]], "items": [[2]]}]}'
    )
    assert asked.items["class"][0].tolist() == [[1]] and asked.items["items"][0].tolist() == [[2]]


def test_a_modality_that_no_request_could_name() -> None:
    with pytest.raises(UserError, match="the model has a modality 'id'"):
        RequestReader({"id": (1,)}, None, 9, 9)


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Input data was truncated"),
        (b'{"items": [', "Input data was truncated"),
        (b"\xef\xbb\xbf{}", "invalid character (byte 0)"),
        (b'{"items": []} x', "trailing characters"),
        (b'{"items": [{"id": "\xff"}]}', "'utf-8' codec can't decode byte 0xff"),
        (b'{"items": [{"id": "\\ud800", "audio": [[1, 2]]}]}', "escaped utf-16"),
        (b'{"items": [{"audio": [[NaN, 1]]}]}', "; NaN and Infinity are not JSON"),
        (b'{"items": [{"audio": [[-Infinity, 1]]}]}', "; NaN and Infinity are not JSON"),
    ],
)
def test_what_is_not_json(body: bytes, reason: str) -> None:
    status, message = refusal(body)
    assert status == 400
    assert message.startswith("the body is not JSON: ") and reason in message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "the body: expected an object, got a list"),
        (b"{}", "the body lacks items"),
        (b'{"items": 1}', "items: expected a list, got a number"),
        (b'{"items": [], "itemz": 1}', "the body has 'itemz'; expected only items, modalities"),
        (b'{"items": []}', "items is empty; expected one at least"),
        (b"[" * 100_000, "the body: expected an object, got a list"),
        (b'{"items": [{"audio": [[1, 1e999]]}]}', "items[0].audio[0][1]: number out of range"),
        (
            b'{"items": [{"audio": [[1, ' + b"9" * 100_000 + b"]]}]}",
            "items[0].audio[0][1]: number out of range",
        ),
    ],
)
def test_a_body_of_another_form(body: bytes, message: str) -> None:
    assert refusal(body) == (422, message)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (1, "items[1]: expected an object, got a number"),
        ({}, "items[1] has none of language, audio, table"),
        ({"audio": None}, "items[1] has none of language, audio, table"),
        ({"smell": [[1]]}, f"items[1] has 'smell'; expected only {TAKES}"),
        ({"a\nb": 1}, f"items[1] has 'a\\nb'; expected only {TAKES}"),
        ({"id": 7, "audio": [[1, 2]]}, "items[1].id: expected text or null, got a number"),
        ({"audio": "x"}, "items[1].audio: expected a list, got text"),
        ({"audio": {}}, "items[1].audio: expected a list, got an object"),
        ({"audio": [1, 2]}, "items[1].audio[0]: expected a list, got a number"),
        ({"audio": [[1, 2], [1, None]]}, "items[1].audio[1][1]: expected a number, got null"),
        ({"audio": [[1, True]]}, "items[1].audio[0][1]: expected a number, got true or false"),
        ({"audio": [[1, "2"]]}, "items[1].audio[0][1]: expected a number, got text"),
        ({"audio": []}, "items[1].audio has no steps; leave it out where an item lacks it"),
        ({"audio": [[]]}, "items[1].audio[0] is 0 wide; the model takes 2"),
        ({"audio": [[1, 2], [1, 2, 3]]}, "items[1].audio[1] is 3 wide; the model takes 2"),
        ({"audio": [[1, 2]] * 7}, "items[1].audio has 7 steps; expected 6 at most"),
        ({"table": [[1]] * 5}, "items[1].table has 5 steps; expected 4 at most"),
        (
            {"audio": [[1, 2], [1, -3.5e38]]},
            "items[1].audio[1][1] is too large; expected a 32-bit float",
        ),
    ],
)
def test_an_item_that_the_model_does_not_take(item: Any, message: str) -> None:
    assert refused({"audio": [[1, 2]]}, item) == message


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ("audio", "modalities: expected a list or null, got text"),
        ([], "modalities is empty; leave it out to use all"),
        (["smell"], "modalities: there is no 'smell'; the model takes language, audio, table"),
        (["table"], "items[0] has none of table"),
    ],
)
def test_modalities_that_cannot_be_used(modalities: Any, message: str) -> None:
    assert refused({"audio": [[1, 2]]}, modalities=modalities) == message


@pytest.mark.parametrize("close", [b"", b"]" * 100_000])
def test_a_body_that_is_nested_deeply(close: bytes) -> None:
    body = b'{"items": [{"audio": ' + b"[" * 100_000 + close
    assert refusal(body) == (400, "the body is nested too deeply")


def test_too_many_items() -> None:
    status, message = refusal(json.dumps({"items": [{"audio": [[1, 2]]}] * 4}).encode())
    assert (status, message) == (413, "4 items; expected 3 at most in a request")


def test_what_may_not_be_used_must_be_right_all_the_same() -> None:
    message = refused({"audio": [[1, 2]], "language": [[1]]}, modalities=["audio"])
    assert message == "items[0].language[0] is 1 wide; the model takes 3"


def test_the_schema_names_what_is_read() -> None:
    (_,), schemas = msgspec.json.schema_components([reader().request_type])
    item = schemas["Item"]
    assert list(item["properties"]) == ["id", "language", "audio", "table"]
    assert item["additionalProperties"] is False
    assert "4 steps of 1 numbers" in json.dumps(item["properties"]["table"])


def test_many_numbers_take_little_memory() -> None:
    row = b"[" + b",".join([b"0"] * 100) + b"]"
    body = b'{"items": [{"audio": [' + b",".join([row] * 2_000) + b"]}]}"
    roomy = RequestReader({"audio": (100,)}, None, 1, 10_000)
    tracemalloc.start()
    try:
        asked = roomy.read(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert asked.items["audio"].values.shape == (2_000, 100)
    # As lists of Python's floats they would be 16 times the body.
    assert peak < 6 * len(body)
