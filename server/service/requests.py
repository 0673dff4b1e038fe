"""Requests for one model: read within limits, validated by pydantic, turned into arrays.

    {"items": [{"id": "a", "language": [[...], ...], "audio": null}], "modalities": ["language"]}

A body that is too large is refused by its Content-Length, or as soon as more bytes arrive than are
allowed; the server then discards the rest. A request is validated whole before it is queued, so
that it cannot fail another one. Validation stops at the first mistake, and each row becomes 32-bit
floats as soon as it is validated.

Notation: T steps, D feature width.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, NamedTuple, Required

import numpy as np
from fastapi import HTTPException, Request
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from common.errors import UserError

#: A body must be complete after this many seconds.
SECONDS = 60.0

#: How many bodies of the largest size are in memory at a time.
AT_ONCE = 8

#: Bytes of a body that is validated at once; larger ones in a thread, one after the other.
_SMALL = 1 << 16

#: The largest magnitude of a 32-bit float.
_LARGEST = float(np.finfo(np.float32).max)

#: A number of a feature; null and NaN are one that is not known.
_Number = float | None


class Item(NamedTuple):
    """An item to predict: its name, and the one or more modalities used, (T, D) each."""

    id: str
    features: Mapping[str, NDArray[np.float32]]

    @property
    def steps(self) -> int:
        """Steps of the longest modality."""
        return max(map(len, self.features.values()))

    @property
    def unknown(self) -> dict[str, int]:
        """Modality to how many of its values are not known, where any is."""
        counts = {name: int(np.isnan(rows).sum()) for name, rows in self.features.items()}
        return {name: count for name, count in counts.items() if count}

    def lacking(self, context: float) -> dict[str, int]:
        """Return the steps before the last of each modality, where there are fewer than that."""
        before = {name: len(rows) - 1 for name, rows in self.features.items()}
        return {name: steps for name, steps in before.items() if steps < context}


class RequestReader:
    """Reads requests for one model, within limits.

    `features` are those of `Predictor`; only the `last_steps` reach the model, None for all.
    `context` is that of its reading.
    Raises `UserError` if a modality is named ``id``.
    """

    def __init__(
        self,
        features: Mapping[str, tuple[int, ...]],
        last_steps: int | None,
        *,
        context: int = 0,
        max_items: int,
        max_steps: int,
        max_body_bytes: int,
    ) -> None:
        if "id" in features:
            raise UserError("the model has a modality 'id', which requests use otherwise")
        self._modalities = tuple(features)
        self._last = slice(-(last_steps or 0), None)
        self._max_items, self._max_bytes = max_items, max_body_bytes
        self._free = AT_ONCE * max_body_bytes
        self._validating = asyncio.Lock()
        rows = {name: _rows(shape, max_steps, context) | None for name, shape in features.items()}
        item = _list(_object("Item", {"id": str | None, **rows}), 1, max_items)
        chosen = _list(Literal[self._modalities], 1) | None
        request = _object("PredictRequest", {"items": Required[item], "modalities": chosen})
        self._request: TypeAdapter[Any] = TypeAdapter(request)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of a request, without references."""
        schema = self._request.json_schema()
        schema["properties"]["items"]["items"] = schema.pop("$defs")["Item"]
        return schema

    @asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[list[Item]]:
        """Yield the items of a request; its body counts as being in memory until the block ends.

        Raises
        ------
        HTTPException
            413 if it is too large, 415 if it is not JSON, 408 if it takes too long, 503 if too
            many bodies are in memory; or as `read`.
        ClientDisconnect
            If the client disconnects.
        """
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, f"Content-Type is {kind!r}; expected application/json")
        coding = request.headers.get("content-encoding", "identity")
        if coding.strip().lower() != "identity":
            raise HTTPException(415, f"Content-Encoding is {coding!r}; expected no compression")
        declared = request.headers.get("content-length", "")
        self._check_size(int(declared) if declared.isdecimal() else 0)
        body = bytearray()
        try:
            await self._fill(body, request)
            if len(body) > _SMALL:
                async with self._validating:
                    items = await asyncio.to_thread(self.read, body)
            else:
                items = self.read(body)
            yield items
        finally:
            self._free += len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                async for chunk in request.stream():
                    self._check_size(len(body) + len(chunk))
                    if len(chunk) > self._free:
                        message = "too many large requests; try again later"
                        raise HTTPException(503, message, {"Retry-After": "1"})
                    self._free -= len(chunk)
                    body += chunk
        except TimeoutError as error:
            message = f"the body took longer than {SECONDS:g} s"
            raise HTTPException(408, message, {"Connection": "close"}) from error

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise HTTPException(413, f"the body is too large; at most {self._max_bytes} bytes fit")

    def read(self, body: bytes | bytearray) -> list[Item]:
        """Read a body.

        Raises
        ------
        HTTPException
            400 if it is not JSON, 413 if it has too many items, 422 for any other mistake.
        """
        # pydantic builds all of a body before it looks at any: fifty bytes for one of these.
        if body.count(b"{") > 2 * self._max_items + 2:
            raise HTTPException(413, f"the body has more objects than {self._max_items} items need")
        # A row takes four bytes at least: "[0],".
        if body.count(b"[") > len(body) // 4 + 64:
            raise HTTPException(422, "the body has more lists than rows of numbers need")
        try:
            request = self._request.validate_json(body)
        except ValidationError as error:
            raise _refusal(error) from None
        chosen = request.get("modalities") or self._modalities
        names = [name for name in self._modalities if name in chosen]
        items = []
        for number, given in enumerate(request["items"]):
            there = (name for name in names if given.get(name) is not None)
            cut = {name: given[name][self._last] for name in there}
            # Of which no value is known, it is as absent as null.
            features = {name: rows for name, rows in cut.items() if not np.isnan(rows).all()}
            if not features:
                raise HTTPException(422, f"items[{number}] has none of {', '.join(names)}")
            own = given.get("id")
            items.append(Item(str(number) if own is None else own, features))
        return items


def _object(name: str, fields: Mapping[str, Any]) -> Any:
    """Return the type of a JSON object with optional keys of any name, and no others."""
    # pydantic takes the TypedDict of `typing` from Python 3.12 on.
    kind: Any = TypedDict
    return with_config(ConfigDict(strict=True, extra="forbid"))(kind(name, fields, total=False))


def _rows(shape: tuple[int, ...], max_steps: int, context: int) -> Any:
    """Return the type of a modality of one item: lists in JSON, (T, D) once validated."""
    *steps, width = shape
    most = min([max_steps, *steps])
    described = (
        f"At most {most} steps of {width} numbers each; null where one is not known, which counts "
        "as the feature's mean."
    )
    if context:
        described += (
            f" An item of one vector has the vectors of the {context} items before it in its group "
            "in front, oldest first, as in training; an answer says where there are fewer."
        )
    # A row of Python's floats would take eight times the memory.
    row: Any = Annotated[_list(_Number, width, width), AfterValidator(_floats)]
    return Annotated[
        _list(row, 1, most),
        Field(description=described),
        AfterValidator(lambda rows: np.frombuffer(b"".join(rows), np.float32).reshape(-1, width)),
    ]


def _floats(row: list[float | None]) -> bytes:
    """Return a row as 32-bit floats, NaN where a number is not known."""
    values = np.array(row, dtype=np.float64)
    if (np.abs(values) > _LARGEST).any():
        raise ValueError(f"expected numbers of at most {_LARGEST:.2g}, or null where unknown")
    return values.astype(np.float32).tobytes()


def _list(of: Any, least: int, most: int | None = None) -> Any:
    return Annotated[list[of], Field(fail_fast=True, min_length=least, max_length=most)]


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
