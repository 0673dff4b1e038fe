"""Requests become arrays, or are refused with one line that names the item and the field."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException

from common.errors import UserError
from server.service.requests import Question, RequestReader

FEATURES: dict[str, tuple[int, ...]] = {"language": (3,), "audio": (2,), "table": (4, 1)}


def reader(last_steps: int | None = None) -> RequestReader:
    return RequestReader(FEATURES, last_steps, max_items=3, max_steps=6)


def read(*items: dict[str, Any], last_steps: int | None = None, **others: Any) -> Question:
    body = json.dumps({"items": items, **others}).encode()
    return reader(last_steps).read(body)


def refusal(body: bytes) -> tuple[int, str]:
    with pytest.raises(HTTPException) as raised:
        reader().read(body)
    return raised.value.status_code, raised.value.detail


def refused(*items: Any, **others: Any) -> str:
    status, message = refusal(json.dumps({"items": items, **others}).encode())
    assert status == 422
    return message


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
    some = asked.select(slice(1, 3))
    assert some.ids == ("1", "") and some.items["audio"][1].tolist() == [[5, 6]]


def test_only_chosen_modalities_and_last_steps_are_used() -> None:
    asked = read({"audio": [[1, 2]], "language": [[1, 2, 3]]}, modalities=["audio"])
    assert list(asked.items) == ["audio"]
    asked = read({"audio": [[n, n] for n in range(5)]}, last_steps=2)
    assert asked.items["audio"][0].tolist() == [[3, 3], [4, 4]]


def test_the_last_of_two_equal_keys_counts() -> None:
    asked = reader().read(b'{"items": [{"id": "a", "id": "b", "audio": [[1, 2]]}]}')
    assert asked.ids == ("b",)


def test_names_of_modalities() -> None:
    names = ("class", "items", "model_dump", "_own")
    odd = RequestReader(dict.fromkeys(names, (1,)), None, 9, 9)
    asked = odd.read(json.dumps({"items": [{name: [[1]] for name in names}]}).encode())
    assert tuple(asked.items) == names
    with pytest.raises(UserError, match="the model has a modality 'id'"):
        RequestReader({"id": (1,)}, None, 9, 9)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"items": [', "EOF while parsing a list"),
        (b"\xef\xbb\xbf{}", "expected value at line 1"),
        (b'{"items": []} x', "trailing characters"),
        (b'{"items": [{"id": "\xff"}]}', "invalid unicode"),
        (b'{"items": [{"id": "\\ud800", "audio": [[1, 2]]}]}', "unexpected end of hex escape"),
        (b'{"items": [{"audio": [[1, ' + b"9" * 100_000 + b"]]}]}", "number out of range"),
        (b"[" * 100_000, "recursion limit exceeded"),
        (b'{"items": [{"audio": ' + b"[" * 100_000 + b"]" * 100_000, "recursion limit exceeded"),
    ],
)
def test_a_body_that_is_not_json(body: bytes, reason: str) -> None:
    status, message = refusal(body)
    assert status == 400
    assert message.startswith("the body is not JSON: ") and reason in message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "the body: input should be an object"),
        (b"{}", "items: field required"),
        (b'{"items": [{"audio": [[1, 2]]}], "itemz": 1}', "itemz: extra inputs are not permitted"),
        (b'{"items": []}', "items: list should have at least 1 item after validation, not 0"),
        (b'{"items": [{"audio": [[NaN, 1]]}]}', "items[0].audio[0][0]: input should be a finite"),
        (b'{"items": [{"audio": [[1, 1e999]]}]}', "items[0].audio[0][1]: input should be a finite"),
    ],
)
def test_a_body_of_another_form(body: bytes, message: str) -> None:
    status, line = refusal(body)
    assert status == 422 and line.startswith(message)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (1, ": input should be an object"),
        ({"audio": None}, " has none of language, audio, table"),
        ({"smell": [[1]]}, ".smell: extra inputs are not permitted"),
        ({"id": 7, "audio": [[1, 2]]}, ".id: input should be a valid string"),
        ({"audio": {}}, ".audio: input should be a valid array"),
        ({"audio": [1, 2]}, ".audio[0]: input should be a valid array"),
        ({"audio": [[1, 2], [1, None]]}, ".audio[1][1]: input should be a valid number"),
        ({"audio": [[1, True]]}, ".audio[0][1]: input should be a valid number"),
        ({"audio": [[1, "2"]]}, ".audio[0][1]: input should be a valid number"),
        ({"audio": []}, ".audio: list should have at least 1 item after validation, not 0"),
        ({"audio": [[1, 2], [1]]}, ".audio[1]: list should have at least 2 items"),
        ({"audio": [[1, 2], [1, 2, 3]]}, ".audio[1]: list should have at most 2 items"),
        ({"audio": [[1, 2]] * 7}, ".audio: list should have at most 6 items"),
        ({"table": [[1]] * 5}, ".table: list should have at most 4 items"),
        ({"audio": [[1, 2], [1, -3.5e38]]}, ".audio[1][1]: input should be greater than or equal"),
    ],
)
def test_an_item_that_does_not_fit_the_model(item: Any, message: str) -> None:
    assert refused({"audio": [[1, 2]]}, item).startswith(f"items[1]{message}")


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ("audio", "modalities: input should be a valid array"),
        ([], "modalities: list should have at least 1 item after validation, not 0"),
        (["smell"], "modalities[0]: input should be 'language', 'audio' or 'table'"),
        (["table"], "items[0] has none of table"),
    ],
)
def test_modalities_that_cannot_be_used(modalities: Any, message: str) -> None:
    assert refused({"audio": [[1, 2]]}, modalities=modalities) == message


def test_too_many_items() -> None:
    status, message = refusal(json.dumps({"items": [{"audio": [[1, 2]]}] * 4}).encode())
    assert status == 413 and message.startswith("items: list should have at most 3 items")


def test_modalities_that_are_not_used_are_validated_too() -> None:
    message = refused({"audio": [[1, 2]], "language": [[1]]}, modalities=["audio"])
    assert message.startswith("items[0].language[0]: list should have at least 3 items")


def test_validation_stops_at_the_first_mistake() -> None:
    body = b'{"items": [{"audio": [' + b'["x", "x"],' * 100_000 + b"[1, 2]]}]}"
    tracemalloc.start()
    try:
        refusal(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


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
    assert peak < 8 * len(body)
