"""Requests for one model: validated by pydantic, turned into arrays.

    {"items": [{"id": "a", "language": [[...], ...], "audio": null}], "modalities": ["language"]}

Everything is checked before a request is queued, so that no request can fail another one. Each
validation stops at its first mistake, and each modality becomes 32-bit floats as soon as it is
validated.

Notation: N items, T steps, D feature width.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from common.data.dataset import IntArray, Sequences, concatenate
from common.errors import UserError

Floats = NDArray[np.float32]

#: The largest magnitude of a 32-bit float.
_LARGEST = float(np.finfo(np.float32).max)

_STRICT = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

_Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]


@dataclass(frozen=True)
class Question:
    """Items for the model to predict.

    Attributes
    ----------
    ids
        N names.
    items
        Modality to N sequences, of length 0 where an item lacks it. Each item has at least one.
    """

    ids: tuple[str, ...]
    items: Mapping[str, Sequences]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> IntArray:
        """(N,) steps of each item's longest modality."""
        lengths: IntArray = np.max([part.lengths for part in self.items.values()], axis=0)
        return lengths

    def select(self, chosen: slice) -> "Question":
        """Return some of the items; their rows are shared."""
        index = np.arange(len(self))[chosen]
        items = {name: sequences.select(index) for name, sequences in self.items.items()}
        return Question(self.ids[chosen], items)


def join(questions: Sequence[Question]) -> Question:
    """Join questions into one; items have length 0 in modalities that only others have."""
    if len(questions) == 1:
        return questions[0]
    widths = {name: part.width for asked in questions for name, part in asked.items.items()}
    items = {
        name: concatenate(
            [asked.items.get(name) or _absent(len(asked), width) for asked in questions]
        )
        for name, width in widths.items()
    }
    return Question(tuple(name for asked in questions for name in asked.ids), items)


def _absent(items: int, width: int) -> Sequences:
    nothing = np.zeros(items, dtype=np.int64)
    return Sequences(np.empty((0, width), dtype=np.float32), nothing, nothing)


class RequestReader:
    """Reads requests for one model.

    Parameters
    ----------
    features
        Modality, in the model's order, to (D,), or to (T, D) if it takes at most T steps.
    last_steps
        How many of the last steps reach the model; None for all.
    max_items, max_steps
        Limits of one request.

    Raises
    ------
    UserError
        If a modality has a name that requests use otherwise.
    """

    def __init__(
        self,
        features: Mapping[str, tuple[int, ...]],
        last_steps: int | None,
        max_items: int,
        max_steps: int,
    ) -> None:
        if "id" in features:
            raise UserError("the model has a modality 'id', which requests use otherwise")
        self._features = dict(features)
        self._last_steps = last_steps
        self._model = _request_model(features, max_items, max_steps)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of a request, without references."""
        schema = self._model.model_json_schema()
        schema["properties"]["items"]["items"] = schema.pop("$defs")["Item"]
        return schema

    def read(self, body: bytes | bytearray) -> Question:
        """Read a body.

        Raises
        ------
        HTTPException
            400 if it is not JSON, 413 if it has too many items, 422 for any other mistake.
        """
        try:
            request: Any = self._model.model_validate_json(body)
        except ValidationError as error:
            raise _refusal(error) from None
        names = [name for name in self._features if name in (request.modalities or self._features)]
        arrays = [self._arrays(item) for item in request.items]
        for number, modalities in enumerate(arrays):
            if modalities.keys().isdisjoint(names):
                raise HTTPException(422, f"items[{number}] has none of {', '.join(names)}")
        ids = (str(n) if item.id is None else item.id for n, item in enumerate(request.items))
        used = [name for name in names if any(name in modalities for modalities in arrays)]
        return Question(tuple(ids), {name: self._sequences(name, arrays) for name in used})

    def _arrays(self, item: Any) -> dict[str, Floats]:
        """Return the modalities that an item has, (T, D) each."""
        given = ((name, getattr(item, _field(n))) for n, name in enumerate(self._features))
        return {name: array for name, array in given if array is not None}

    def _sequences(self, name: str, arrays: Sequence[Mapping[str, Floats]]) -> Sequences:
        lacking = np.empty((0, self._features[name][-1]), dtype=np.float32)
        last = slice(None if self._last_steps is None else -self._last_steps, None)
        parts = [modalities.get(name, lacking)[last] for modalities in arrays]
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        return Sequences(np.concatenate(parts), np.cumsum(lengths) - lengths, lengths)


def _field(number: int) -> str:
    """Return an identifier for a modality, whatever its name is."""
    return f"modality_{number}"


def _request_model(
    features: Mapping[str, tuple[int, ...]], max_items: int, max_steps: int
) -> type[BaseModel]:
    modalities: dict[str, Any] = {
        _field(number): (_rows(shape, max_steps) | None, Field(None, alias=name))
        for number, (name, shape) in enumerate(features.items())
    }
    item = create_model("Item", __config__=_STRICT, id=(str | None, None), **modalities)
    fields: dict[str, Any] = {
        "items": (_list(item, 1, max_items), ...),
        "modalities": (_list(Literal[tuple(features)], 1) | None, None),
    }
    return create_model("PredictRequest", __config__=_STRICT, **fields)


def _rows(shape: tuple[int, ...], max_steps: int) -> Any:
    """Return the type of a modality of one item: lists in JSON, (T, D) once validated."""
    *steps, width = shape
    most = min([max_steps, *steps])
    # A row of Python's floats would take eight times the memory.
    row: Any = Annotated[_list(_Number, width, width), AfterValidator(partial(array, "f"))]
    rows: Any = _list(row, 1, most)
    return Annotated[
        rows,
        Field(description=f"At most {most} steps of {width} numbers each."),
        AfterValidator(lambda rows: np.frombuffer(b"".join(rows), np.float32).reshape(-1, width)),
    ]


def _list(of: Any, least: int, most: int | None = None) -> Any:
    """Return the type of a list whose validation stops at the first mistake."""
    bounds = Field(fail_fast=True, min_length=least, max_length=most)
    return Annotated[list[of], bounds]


def _refusal(error: ValidationError) -> HTTPException:
    """Say in one line what pydantic refused first, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return HTTPException(400, f"the body is not JSON: {first['ctx']['error']}")
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"])
    too_many = first["type"] == "too_long" and first["loc"] == ("items",)
    message = first["msg"][:1].lower() + first["msg"][1:]
    return HTTPException(
        413 if too_many else 422, f"{place.removeprefix('.') or 'the body'}: {message}"
    )
