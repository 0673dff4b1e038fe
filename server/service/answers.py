"""The answers of the service, as it sends them and as `/openapi.json` describes them."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import Response
from pydantic import BaseModel, Field
from pydantic_core import to_json

from common.config import ServeConfig
from common.errors import UserError, printable
from common.task import Task
from server.prediction.predictor import Predictor, model_path, run_of
from server.run.folder import CONFIG, MODEL, SUMMARY, read_group

#: The largest sentiment label, of seven classes around 0.
SENTIMENT = 3.0

Label = float | str | list[str]


class ErrorAnswer(BaseModel):
    """Why there is no other answer."""

    error: str = Field(description="One line: what is wrong, and what was expected.")


class HealthAnswer(BaseModel):
    """The service is running."""

    status: str


class _Outcome(BaseModel):
    prediction: Label
    seven_class: int | None = Field(None, description="Of sentiment only, from -3 to 3.")
    sign: str | None = Field(None, description="Of sentiment only: positive or negative.")
    probabilities: dict[str, float] | None = None


class ModalityRecord(_Outcome):
    """The prediction from one modality of an item alone, and what it adds to the joint one."""

    contribution: float | dict[str, float]


class ItemRecord(_Outcome):
    """The prediction for an item: numbers with a deviation, classes with probabilities."""

    id: str
    std: float | None = Field(
        None, description="It depends on which modalities an item has, and not on their content."
    )
    base: float | dict[str, float] = Field(
        description="What the training labels alone predict; with all contributions it sums to the "
        "prediction, or to the probability of each class or label."
    )
    modalities: dict[str, ModalityRecord]
    unknown: dict[str, int] = Field(
        {}, description="Modality to its values that were null: each counts as the feature's mean."
    )
    context: dict[str, int] = Field(
        {},
        description="Modality to the steps before its last, where they are fewer than the model's "
        "`context`: right for the first items of a group, and otherwise a worse prediction.",
    )


class ModelName(BaseModel):
    """Which model answered."""

    name: str
    sha256: str


class PredictAnswer(BaseModel):
    """Predictions, in the order of the items."""

    predictions: list[ItemRecord]
    model: ModelName


class ModalityAnswer(BaseModel):
    """The inputs of a modality."""

    width: int
    steps: int | None = Field(description="At most so many; null: any number.")
    extractor: str = Field(description="What has to make the features; empty if it is not known.")


class ModelAnswer(ModelName):
    """The inputs and outputs of the model, its fusion of modalities, and limits of a request."""

    task: str
    labels: list[str]
    features: dict[str, ModalityAnswer]
    max_seq_len: int | None = Field(description="Only this many last steps are used.")
    context: int = Field(
        description="Steps before its own that an item of one vector had in training: the vectors "
        "of the items before it in its group."
    )
    scale: list[float] | None = Field(description="Approximate range of predicted numbers.")
    fusion: dict[str, Any] = Field(
        description="The rule, and each modality's share of what all tell about the label."
    )
    training: dict[str, Any]
    limits: dict[str, int]


class ExampleName(BaseModel):
    """An item that can be picked."""

    id: str
    label: Label
    modalities: list[str]
    typical: bool = Field(description="Whether it is the one with the median error.")


class ExampleAnswer(BaseModel):
    """An item, in the form of a request, and its true label."""

    label: Label
    item: dict[str, Any]


_REASONS = {
    400: "The body is not JSON, or the Host header names another service.",
    401: "The token is missing or wrong.",
    404: "There is no such example.",
    408: "The body took too long.",
    413: "The body is too large, or has too many items.",
    415: "The Content-Type is not JSON, or the body is compressed.",
    422: "The request does not fit the model.",
    500: "The model failed.",
    503: "Too much is waiting; try again after Retry-After seconds.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe answers that are errors, by their status."""
    return {status: {"model": ErrorAnswer, "description": _REASONS[status]} for status in statuses}


def json_answer(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return plain values as an answer that is not cached."""
    fixed = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    body = to_json(content, inf_nan_mode="null")
    return Response(body, status, {**fixed, **(headers or {})}, media_type="application/json")


def error_answer(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error; its message may quote what a caller sent, and stays one line of text."""
    return json_answer({"error": printable(message)}, status, headers)


def describe(config: ServeConfig, predictor: Predictor, labels: Sequence[str]) -> ModelAnswer:
    """Describe a model, with these names of its classes or labels.

    Raises `UserError` if the model is in the folder of a run whose summary is damaged.
    """
    file, run = model_path(str(config.model)), run_of(str(config.model))
    return ModelAnswer(
        name=run.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        task=predictor.task,
        labels=list(labels),
        features={
            name: ModalityAnswer(
                width=width,
                steps=steps[0] if steps else None,
                extractor=predictor.reading.extractors.get(name, ""),
            )
            for name, (*steps, width) in predictor.features.items()
        },
        max_seq_len=predictor.max_seq_len,
        context=predictor.reading.context,
        scale=scale(predictor),
        fusion={"rule": predictor.fusion.rule, "weights": predictor.fusion.weights},
        training=_training(run) if file.name == MODEL else {},
        limits={
            "max_body_bytes": round(config.max_body_mb * 2**20),
            "max_items": config.max_items,
            "max_steps": config.max_steps,
        },
    )


def scale(predictor: Predictor) -> list[float] | None:
    """Return the ends of a scale for predicted numbers, None for classes and labels.

    The scale is -3 to 3 for sentiment, otherwise three deviations around the labels' mean.
    """
    if predictor.task is not Task.regression:
        return None
    if predictor.model.spec.sentiment:
        return [-SENTIMENT, SENTIMENT]
    mean, variance = predictor.fusion.prior
    deviation = math.sqrt(variance)
    return [mean - 3 * deviation, mean + 3 * deviation]


def _training(folder: Path) -> dict[str, Any]:
    """Return facts of the run that delivered the model, if it is in a run folder."""
    if not (folder / CONFIG).is_file() or not (folder / SUMMARY).is_file():
        return {}
    strategy = read_group(folder / CONFIG, "strategy").get("name")
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        facts = {name: summary.get(name) for name in ("rounds", "delivered_round", "seed")}
        test = summary["test"]["multimodal"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / SUMMARY} is damaged: {error}") from error
    return {"strategy": strategy, **facts, "test": test}
