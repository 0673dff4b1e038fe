"""The service over a real connection: what it answers, what it refuses, and that it goes on."""

import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from made_up_models import OUTPUTS
from service_models import (
    Served,
    SlowPredictor,
    ask,
    connect,
    counted,
    item,
    small_predictor,
    until,
    waiting,
)

from common.config import ServeConfig
from common.data.source import Reading
from common.errors import UserError
from common.task import Task
from server.prediction.predictor import Predictor
from server.run.folder import CHECKPOINTS, CONFIG, LAST, MODEL, SUMMARY
from server.service.answers import ExampleAnswer, describe
from server.service.examples import Examples


def error_of(answer: httpx.Response) -> str:
    """The one line of an answer that is an error."""
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    message = answer.json()["error"]
    assert message and "\n" not in message
    return str(message)


# Predictions ------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_model(client: httpx.Client, predictor: Predictor) -> None:
    given = [item(1), item(2, "audio", steps=3), item(3, "language", "vision")]
    answer = ask(client, {"id": "first", **given[0]}, *given[1:])
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    found = answer.json()["predictions"]
    assert [record["id"] for record in found] == ["first", "1", "2"]
    for record, features in zip(found, given, strict=True):
        arrays = {name: np.array(rows, dtype=np.float32) for name, rows in features.items()}
        expected = predictor.predict(arrays)
        assert record["prediction"] == pytest.approx(float(expected.values[0]), abs=1e-6)
        assert expected.std is not None
        assert record["std"] == pytest.approx(float(expected.std[0]), abs=1e-6)
        assert list(record["modalities"]) == list(features)
        added = sum(own["contribution"] for own in record["modalities"].values())
        assert record["base"] + added == pytest.approx(record["prediction"], abs=1e-5)
    model = client.get("/model").json()
    assert answer.json()["model"] == {name: model[name] for name in ("name", "sha256")}


def test_requests_that_come_together_are_predicted_together(served: Served) -> None:
    given = [item(seed, steps=1 + seed % 6) for seed in range(48)]
    with served(max_wait_ms=50) as client, ThreadPoolExecutor(16) as callers:

        def prediction(one: dict[str, Any]) -> float:
            return float(ask(client, one).json()["predictions"][0]["prediction"])

        alone = list(map(prediction, given))
        assert counted(client, "utmp_batch_items_count") == 48
        together = list(callers.map(prediction, given))
        assert counted(client, "utmp_batch_items_count") < 78
    assert together == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_classes_and_labels_have_their_names(served: Served, task: Task) -> None:
    names = ["joy", "fear", "anger"][: OUTPUTS[task]]
    with served(model=small_predictor(task), labels=names) as client:
        (found,) = ask(client, item(4)).json()["predictions"]
        assert list(found["probabilities"]) == names
        best = max(found["probabilities"], key=found["probabilities"].get)
        likely = [name for name, value in found["probabilities"].items() if value >= 0.5]
        assert found["prediction"] == (best if task is Task.classification else likely)
        model = client.get("/model").json()
        assert (model["labels"], model["scale"]) == (names, None)


# What is refused --------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}
FINE = b'{"items": [{"audio": [[1, 2, 3]]}]}'


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b'{"items": [{"a\\nb": 1}]}', JSON, 422, "items[0].a\\nb: extra inputs"),
        (b"0" * 200_000, JSON, 413, "the body is too large; at most 131072 bytes fit"),
        (FINE, {}, 415, "Content-Type is ''; expected application/json"),
        (FINE, {"Content-Type": "text/plain"}, 415, "Content-Type is 'text/plain'"),
        (FINE, JSON | {"Content-Encoding": "gzip"}, 415, "Content-Encoding is 'gzip'"),
    ],
)
def test_refused_bodies(
    client: httpx.Client, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    answer = client.post("/predict", content=body, headers=headers)
    assert answer.status_code == status
    assert message in error_of(answer)
    again = client.post("/predict", content=FINE, headers={"Content-Type": "Application/JSON; x=y"})
    assert again.status_code == 200


@pytest.mark.parametrize(
    ("request_line", "status", "message"),
    [
        ("GET /predict", 405, "/predict does not take GET"),
        ("DELETE /model", 405, "/model does not take DELETE"),
        ("GET /nothing", 404, "there is no /nothing; /docs lists what there is"),
        ("GET /../conf", 404, "there is no /"),
        ("GET /examples/7", 404, "there is no example 7; there are 0"),
        ("GET /examples/-1", 404, "there is no example -1"),
        ("GET /examples/x", 422, "number: "),
    ],
)
def test_refused_paths(client: httpx.Client, request_line: str, status: int, message: str) -> None:
    answer = client.request(*request_line.split())
    assert answer.status_code == status
    assert error_of(answer).startswith(message)
    assert status != 405 or answer.headers["allow"]


def still_predicts(client: httpx.Client) -> bool:
    return ask(client, {"audio": [[1, 2, 3]]}).status_code == 200


LOCAL = ["localhost", "LocalHost:1", "127.0.0.1:8100", "127.8.0.1", "[::1]", "[::1]:8100"]
ELSEWHERE = ["10.0.0.5:80", "[fe80::1]:9", "192.0.2.7", "0.0.0.0"]
STRANGE = ["evil.example", "localhost.evil.example:80", "a:80:80", "[::1", "", "x y", "é"]


@pytest.mark.parametrize(
    ("settings", "known", "unknown"),
    [
        ({}, LOCAL, [*ELSEWHERE, *STRANGE, "models.example.org"]),
        ({"allowed_hosts": ["Models.example.org"]}, [*LOCAL, "models.example.ORG:443"], STRANGE),
        ({"host": "gpu7"}, ["gpu7:8100", *LOCAL, *ELSEWHERE], STRANGE),
        ({"host": "0.0.0.0", "token": "s3cret"}, [*LOCAL, *ELSEWHERE], STRANGE),
    ],
)
def test_a_name_of_somebody_else_is_refused(
    served: Served, settings: dict[str, Any], known: list[str], unknown: list[str]
) -> None:
    with served(**settings) as client:
        for host in known:
            assert client.get("/examples", headers=[(b"host", host.encode())]).status_code == 200
        for host in unknown:
            for path in ("/", "/health", "/examples"):
                answer = client.get(path, headers=[(b"host", host.encode("latin-1"))])
                assert answer.status_code == 400
                assert error_of(answer).startswith(f"the Host header is {host!r}; expected an addr")
        refused = counted(client, 'utmp_requests_total{route="other",status="400"}')
        assert refused == 3 * len(unknown)


def test_a_request_without_a_host_is_refused(client: httpx.Client) -> None:
    address = (client.base_url.host, client.base_url.port or 0)
    with socket.create_connection(address, 10) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_an_endless_body_is_refused_early(client: httpx.Client) -> None:
    pieces = (b'{"items": [' + b"0" * (1 << 20) for _ in range(64))
    answer = client.post("/predict", content=pieces, headers=JSON)
    assert answer.status_code == 413 and "too large" in error_of(answer)
    assert still_predicts(client)


def test_a_declared_length_is_refused_before_anything_is_sent(client: httpx.Client) -> None:
    with connect(client, length=1 << 30, header="Expect: 100-continue\r\n") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_disconnects_harms_nobody(client: httpx.Client) -> None:
    count = 'utmp_requests_total{route="/predict",status="499"}'
    before = counted(client, count)
    with connect(client, length=100) as connection:
        connection.sendall(b"{")
        time.sleep(0.1)
    until(lambda: counted(client, count) == before + 1)
    assert still_predicts(client)


def test_a_body_that_takes_too_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.service.requests.SECONDS", 0.2)
    with served() as client, connect(client, length=100) as connection:
        connection.sendall(b"{")
        answer = b""
        while piece := connection.recv(1000):  # until it is closed
            answer += piece
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'{"error":"the body took longer than 0.2 s"}' in answer


# Overload and faults ----------------------------------------------------------------------------


def check_overload(refused: httpx.Response, message: str) -> None:
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert error_of(refused) == f"{message}; try again later"


def test_a_full_queue_asks_to_try_again(served: Served, slow: SlowPredictor) -> None:
    with served(model=slow, max_queue=3, max_items=3) as client, ThreadPoolExecutor(1) as callers:
        first = callers.submit(ask, client, item(1), item(2))
        until(lambda: waiting(client) == 2)
        refused = ask(client, item(3), item(4))
        assert client.get("/health").json() == {"status": "ok"}
        slow.open.set()
        check_overload(refused, "2 items are waiting, of at most 3")
        assert first.result().status_code == 200
        assert ask(client, item(3), item(4)).status_code == 200
        assert waiting(client) == 0


def test_only_a_few_large_bodies_are_in_memory(served: Served, slow: SlowPredictor) -> None:
    large = {"id": "x" * 900, "audio": [[1, 2, 3]]}
    with served(model=slow, max_body_mb=1 / 1024) as client, ThreadPoolExecutor(8) as callers:
        held = [callers.submit(ask, client, large) for _ in range(8)]
        until(lambda: waiting(client) == 8)
        refused = ask(client, large)
        slow.open.set()
        check_overload(refused, "too many large requests")
        assert [answer.result().status_code for answer in held] == [200] * 8
        assert ask(client, large).status_code == 200


def test_a_client_that_disconnects_leaves_the_queue(served: Served, slow: SlowPredictor) -> None:
    body = json.dumps({"items": [item(1)]}).encode()
    with served(model=slow) as client:
        with connect(client, length=len(body)) as connection:
            connection.sendall(body)
            until(lambda: waiting(client) == 1)
        until(lambda: waiting(client) == 0)
        slow.open.set()
        assert ask(client, item(1)).status_code == 200


def test_open_requests_are_answered_before_the_end(served: Served, slow: SlowPredictor) -> None:
    with ThreadPoolExecutor(1) as callers:
        with served(model=slow) as client:
            url = f"{client.base_url}/predict"
            asked = callers.submit(httpx.post, url, json={"items": [item(1)]}, timeout=30)
            until(lambda: waiting(client) == 1)
            threading.Timer(0.3, slow.open.set).start()
        assert asked.result().status_code == 200


# The token --------------------------------------------------------------------------------------

OPEN = ["/", "/health", "/docs", "/app.js", "/style.css"]
GUARDED = ["/model", "/metrics", "/examples", "/examples/0", "/openapi.json"]
WRONG = ["", "Bearer", "Bearer x", "Basic s3cret!", "Bearer s3cret", "Bearer s3cret!!", "Bearer é"]


def test_what_needs_the_token(served: Served) -> None:
    with served(token="s3cret!") as client, httpx.Client(base_url=client.base_url) as without:
        for path in OPEN:
            assert without.get(path).status_code == 200
        for path in GUARDED:
            assert client.get(path).status_code in (200, 404)
        for given in WRONG:
            headers = [(b"authorization", given.encode("latin-1"))]
            answers = [without.get(path, headers=headers) for path in GUARDED]
            answers.append(without.post("/predict", json={"items": [item(1)]}, headers=headers))
            for answer in answers:
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "Authorization: Bearer TOKEN" in error_of(answer)
        assert ask(client, item(1)).status_code == 200
        schema = client.get("/openapi.json").json()
        assert schema["paths"]["/predict"]["post"]["security"] == [{"HTTPBearer": []}]


# What it says about itself ----------------------------------------------------------------------


def test_metrics(served: Served) -> None:
    with served() as client, served() as other:
        ask(client, item(1), item(2))
        ask(client, {})
        client.get("/made/up?" + "x" * 100)
        client.request("MADEUP", "/model")
        answer = client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        lines = answer.text.splitlines()
        assert {
            'utmp_requests_total{route="/predict",status="200"} 1.0',
            'utmp_requests_total{route="/predict",status="422"} 1.0',
            'utmp_requests_total{route="other",status="404"} 1.0',
            "utmp_batch_items_sum 2.0",
            "utmp_batch_items_count 1.0",
            "utmp_batch_seconds_count 1.0",
            "utmp_items_total 2.0",
            "utmp_waiting_items 0.0",
            'utmp_request_seconds_count{route="/predict"} 2.0',
        } <= set(lines)
        assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
        assert "made" not in answer.text and "MADEUP" not in answer.text
        assert counted(other, "utmp_items_total") == 0


@pytest.mark.parametrize(
    ("settings", "summary", "damaged"),
    [
        (
            "strategy: fedavg",
            "{}",
            f"{CONFIG} is damaged: expected settings of strategy, not fedavg",
        ),
        ("strategy: {name: fedavg}", "{}", f"{SUMMARY} is damaged: 'test'"),
        ("strategy: {name: fedavg}", '{"test": {"multimodal": {"corr": 0.5}}, "seed": 7}', None),
        ("seed: 7", '{"test": {"multimodal": {"corr": 0.5}}, "seed": 7}', None),
    ],
)
def test_facts_of_the_run(
    predictor: Predictor, tmp_path: Path, settings: str, summary: str, damaged: str | None
) -> None:
    for name, content in ((CONFIG, settings), (SUMMARY, summary), (MODEL, "")):
        (tmp_path / name).write_text(content)
    config = ServeConfig(model=str(tmp_path))
    if damaged is None:
        strategy = "fedavg" if "fedavg" in settings else None
        facts = {"strategy": strategy, "rounds": None, "delivered_round": None, "seed": 7}
        facts["test"] = {"corr": 0.5}
        assert describe(config, predictor, []).training == facts
        return
    with pytest.raises(UserError, match=f"^{re.escape(f'{tmp_path}/{damaged}')}$"):
        describe(config, predictor, [])


@pytest.mark.parametrize("place", [LAST, f"{CHECKPOINTS}/round-000002.safetensors"])
def test_a_model_that_was_not_delivered_has_no_scores_of_the_run(
    predictor: Predictor, tmp_path: Path, place: str
) -> None:
    (tmp_path / CHECKPOINTS).mkdir()
    summary = '{"test": {"multimodal": {"corr": 0.5}}, "seed": 7}'
    for name, content in ((CONFIG, "seed: 7"), (SUMMARY, summary), (place, "")):
        (tmp_path / name).write_text(content)
    answer = describe(ServeConfig(model=str(tmp_path / place)), predictor, [])
    assert (answer.name, answer.training) == (tmp_path.name, {})


def test_the_model(client: httpx.Client, predictor: Predictor) -> None:
    model = client.get("/model").json()
    assert model["task"] == "regression" and model["labels"] == [] and model["training"] == {}
    assert model["features"] == {
        "language": {"width": 4, "steps": None, "extractor": ""},
        "audio": {"width": 3, "steps": None, "extractor": ""},
        "vision": {"width": 2, "steps": 3, "extractor": ""},
    }
    assert model["max_seq_len"] == 6
    assert model["scale"] == [-3, 3]
    assert model["fusion"] == {"rule": "reliability", "weights": predictor.fusion.weights}
    assert model["limits"] == {"max_body_bytes": 1 << 17, "max_items": 20, "max_steps": 9}
    assert re.fullmatch("[0-9a-f]{64}", model["sha256"])


def test_the_model_says_what_made_its_features(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / MODEL).touch()
    reading = replace(predictor.reading, extractors={"audio": "log-mel 1 (0a)"})
    known = replace(predictor, reading=reading)
    features = describe(ServeConfig(model=str(tmp_path)), known, []).features
    made = {name: answer.extractor for name, answer in features.items()}
    assert made == {"language": "", "audio": "log-mel 1 (0a)", "vision": ""}


@pytest.mark.parametrize("sentiment", [True, False])
def test_only_sentiment_has_a_class_of_seven_and_a_sign(served: Served, sentiment: bool) -> None:
    with served(model=small_predictor(sentiment=sentiment)) as client:
        (found,) = ask(client, item(4)).json()["predictions"]
        for record in (found, *found["modalities"].values()):
            assert ("seven_class" in record) == ("sign" in record) == sentiment


def test_examples(served: Served) -> None:
    first = ExampleAnswer(label=1.5, item={"id": "a", **item(1)})
    second = ExampleAnswer(label=-2.0, item={"id": "b", **item(2, "audio")})
    examples = Examples((first, second))
    with served(examples=examples) as client:
        assert client.get("/examples").json() == [
            {
                "id": "a",
                "label": 1.5,
                "modalities": ["language", "audio", "vision"],
                "typical": True,
            },
            {"id": "b", "label": -2, "modalities": ["audio"], "typical": False},
        ]
        given = client.get("/examples/1").json()
        assert given == {"label": -2, "item": {"id": "b", **item(2, "audio")}}
        assert ask(client, given["item"]).json()["predictions"][0]["id"] == "b"


def test_the_schema_lists_every_answer(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.")
    paths = "/health /predict /model /examples /examples/{number} /metrics"
    assert list(schema["paths"]) == paths.split()
    predict = schema["paths"]["/predict"]["post"]
    assert " ".join(predict["responses"]) == "200 400 401 408 413 415 422 500 503"
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema)))
    assert references <= set(schema["components"]["schemas"])
    request = predict["requestBody"]["content"]["application/json"]["schema"]
    assert (request["required"], [*request["properties"]]) == (["items"], ["items", "modalities"])
    features = request["properties"]["items"]["items"]
    assert features["additionalProperties"] is False and "required" not in features
    assert list(features["properties"]) == ["id", "language", "audio", "vision"]
    table = features["properties"]["vision"]["anyOf"][0]
    assert table["description"].startswith("At most 3 steps of 2 numbers each; null where one is ")
    assert (table["maxItems"], table["items"]["maxItems"]) == (3, 2)
    assert client.get("/openapi.json").json() == schema


def test_less_context_than_in_training_is_said(served: Served, predictor: Predictor) -> None:
    model = replace(predictor, reading=Reading(max_seq_len=4, context=2))
    whole, first, none = item(1, "audio", steps=3), item(2, "audio", steps=1), item(3, "audio")
    with served(model=model) as client:
        assert client.get("/model").json()["context"] == 2
        features = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]
        assert "the vectors of the 2 items before it in its group in front" in json.dumps(features)
        many = item(4, "audio", steps=6)
        found = ask(client, whole, {**first, **item(2, "language", steps=4)}, none, many)
        given = [record.get("context") for record in found.json()["predictions"]]
    steps = len(none["audio"])
    assert given == [None, {"audio": 0}, None if steps > 2 else {"audio": steps - 1}, None]
    # Fewer last steps than that are no lack.
    with served(model=replace(predictor, reading=Reading(max_seq_len=1, context=2))) as client:
        assert "context" not in ask(client, first).json()["predictions"][0]
    with served() as client:
        assert "context" not in ask(client, first).json()["predictions"][0]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "http://" not in answer.text and "https://" not in answer.text
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", answer.text)
    for name in re.findall(r'(?:src|href)="([^"]+)"', answer.text):
        assert client.get(f"/{name.removeprefix('./')}").status_code == 200
    assert client.head(path).status_code == 200
