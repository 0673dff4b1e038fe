"""What `/openapi.json` says of requests and answers."""

from typing import Any

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel, Field

_REFERENCE = "#/components/schemas/{name}"


class ErrorAnswer(BaseModel):
    """Why there is no other answer."""

    error: str = Field(description="One line: what is wrong, and what was expected.")


class HealthAnswer(BaseModel):
    """The service is there."""

    status: str


class ModalityRecord(BaseModel):
    """What one modality of an item predicts by itself, and its share in the prediction."""

    prediction: float | str | list[str]
    seven_class: int | None = None
    sign: str | None = None
    probabilities: dict[str, float] | None = None
    weight: float


class ItemRecord(BaseModel):
    """What is predicted for an item: numbers with a deviation, classes with probabilities."""

    id: str
    prediction: float | str | list[str]
    std: float | None = None
    seven_class: int | None = None
    sign: str | None = None
    probabilities: dict[str, float] | None = None
    modalities: dict[str, ModalityRecord]


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    sha256: str


class PredictAnswer(BaseModel):
    """Predictions, in the order of the items."""

    predictions: list[ItemRecord]
    model: ModelName


class ModalityAnswer(BaseModel):
    """What the model takes of a modality: so wide, and at most so many steps; null: any number."""

    width: int
    steps: int | None


class ModelAnswer(ModelName):
    """What the model takes and predicts, how it joins modalities, and the limits of a request."""

    task: str
    labels: list[str]
    features: dict[str, ModalityAnswer]
    max_seq_len: int | None = Field(description="So many last steps are used.")
    scale: list[float] | None = Field(description="Between which numbers lie, about.")
    fusion: dict[str, Any]
    training: dict[str, Any]
    limits: dict[str, int]


class ExampleName(BaseModel):
    """An item that can be picked."""

    id: str
    label: float | str | list[str]
    modalities: list[str]


class ExampleAnswer(BaseModel):
    """An item as a request takes it, and what is true of it."""

    label: float | str | list[str]
    item: dict[str, Any]


Answers = dict[int | str, dict[str, Any]]


def _errors(**reasons: str) -> Answers:
    """Return answers that are errors; the statuses as names, such as ``s413``."""
    return {
        int(status[1:]): {"model": ErrorAnswer, "description": reason}
        for status, reason in reasons.items()
    }


_TOKEN = _errors(s401="The token is missing or wrong.")

#: Route to its answers.
ANSWERS: dict[str, Answers] = {
    "health": {200: {"model": HealthAnswer}},
    "predict": {
        200: {"model": PredictAnswer},
        **_TOKEN,
        **_errors(
            s400="The body is not JSON.",
            s408="The body took too long.",
            s413="The body is too large, or has too many items.",
            s415="The body is not said to be JSON, or is compressed.",
            s422="An item is not what the model takes.",
            s500="The model failed.",
            s503="Too much is waiting; come back after Retry-After seconds.",
        ),
    },
    "model": {200: {"model": ModelAnswer}, **_TOKEN},
    "examples": {200: {"model": list[ExampleName]}, **_TOKEN},
    "example": {
        200: {"model": ExampleAnswer},
        **_TOKEN,
        **_errors(s404="There is no such example.", s422="It is not a number."),
    },
    "metrics": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_TOKEN},
}


def add_requests(app: FastAPI, request_type: type[msgspec.Struct]) -> None:
    """Put the schema of requests, which FastAPI does not read itself, beside those of answers."""
    made = app.openapi
    (reference,), components = msgspec.json.schema_components(
        [request_type], ref_template=_REFERENCE
    )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            schema["components"]["schemas"] |= components
            schema["paths"]["/predict"]["post"]["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": reference}},
            }
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
