"""From the body of a request to what the model is asked, or one line that says what is wrong.

    {"items": [{"id": "a", "language": [[...], ...], "audio": null}], "modalities": ["language"]}

Everything is checked here, before a request waits in line, so that none can fail another. Reading
stops at the first mistake and goes step by step, so that a body of millions of numbers becomes
32-bit floats at once and other threads have their turns meanwhile.

Notation: N items, T steps, D feature width.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.data.dataset import IntArray, Sequences
from common.errors import UserError
from server.service.refusal import RefusedError

Rows = list[list[float]]
Floats = NDArray[np.float32]

_NULL = msgspec.Raw(b"null")

_Json = bytes | bytearray | msgspec.Raw

#: Words of a request that no modality can have for its name.
_TAKEN = ("id",)

_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a number",
    "null": "null",
    "object": "an object",
    "str": "text",
}


@dataclass(frozen=True)
class Question:
    """What is asked of the model.

    Attributes
    ----------
    ids
        N names.
    items
        Modality to N sequences; length 0 where an item lacks it. Each item has one.
    """

    ids: tuple[str, ...]
    items: Mapping[str, Sequences]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> IntArray:
        """(N,) steps of each item's longest modality."""
        lengths: IntArray = np.max([each.lengths for each in self.items.values()], axis=0)
        return lengths

    def select(self, chosen: slice) -> "Question":
        """Return some of the items; the rows are shared."""
        index = np.arange(len(self))[chosen]
        items = {name: each.select(index) for name, each in self.items.items()}
        return Question(self.ids[chosen], items)


class RequestReader:
    """Reads requests for one model.

    Parameters
    ----------
    features
        Modality, in order, to (D,), or to (T, D) where it takes T steps at most.
    last_steps
        At most so many last steps reach the model; None for all.
    max_items, max_steps
        How much one request may ask.

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
        for name in set(_TAKEN) & set(features):
            raise UserError(f"the model has a modality {name!r}, which requests use otherwise")
        self._features = dict(features)
        self._last_steps = last_steps
        self._max_items = max_items
        self._max_steps = max_steps
        self._fields = {name: f"modality_{number}" for number, name in enumerate(features)}
        described = {name: Annotated[Rows | None, self._meta(name)] for name in features}
        self.request_type = self._make_type(described)
        self._request = msgspec.json.Decoder(self._make_type(dict.fromkeys(features, msgspec.Raw)))
        self._rows = msgspec.json.Decoder(list[msgspec.Raw])
        self._row = msgspec.json.Decoder(list[float])

    def read(self, body: bytes | bytearray) -> Question:
        """Read a body.

        Raises
        ------
        RefusedError
            400 for what is not JSON, 413 for too many items, 422 for all else.
        """
        request = self._decoded(self._request, body)
        names = self._asked(request.modalities)
        count = len(request.items)
        if count == 0:
            raise RefusedError(422, "items is empty; expected one at least")
        if count > self._max_items:
            raise RefusedError(
                413, f"{count} items; expected {self._max_items} at most in a request"
            )
        ids, arrays = [], []
        for number, item in enumerate(request.items):
            ids.append(str(number) if item.id is None else item.id)
            arrays.append(self._arrays(item, f"items[{number}]"))
            if not arrays[-1].keys() & names:
                raise RefusedError(422, f"items[{number}] has none of {', '.join(names)}")
        having = [name for name in names if any(name in each for each in arrays)]
        return Question(tuple(ids), {name: self._sequences(name, arrays) for name in having})

    def _make_type(self, rows: Mapping[str, Any]) -> type[msgspec.Struct]:
        """Return the type of a request, given that of each modality."""
        item = msgspec.defstruct(
            "Item",
            [
                ("id", str | None, None),
                *((field, rows[name], None) for name, field in self._fields.items()),
            ],
            rename={field: name for name, field in self._fields.items()},
            forbid_unknown_fields=True,
            gc=False,
        )
        return msgspec.defstruct(
            "PredictRequest",
            [("items", list[item]), ("modalities", list[str] | None, None)],  # type: ignore[valid-type]
            forbid_unknown_fields=True,
            gc=False,
        )

    def _meta(self, name: str) -> msgspec.Meta:
        *steps, width = self._features[name]
        most = min([self._max_steps, *steps])
        return msgspec.Meta(description=f"At most {most} steps of {width} numbers each.")

    def _decoded(self, decoder: msgspec.json.Decoder[Any], body: _Json, where: str = "") -> Any:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            raise RefusedError(422, self._explained(str(error), where)) from error
        except RecursionError as error:
            raise RefusedError(400, "the body is nested too deeply") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = str(error).removeprefix("JSON is malformed: ")
            literal = re.search(rb"NaN|Infinity", memoryview(body))
            hint = "; NaN and Infinity are not JSON" if literal else ""
            raise RefusedError(400, f"the body is not JSON: {reason}{hint}") from error

    def _explained(self, message: str, where: str) -> str:
        """Say in our words what msgspec refused, at a place of the body or below."""
        what, _, path = message.partition(" - at ")
        where += path.strip("`").removeprefix("$")
        where = where.removeprefix(".") or "the body"
        if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
            takes = ["id", *self._features] if where != "the body" else ["items", "modalities"]
            return f"{where} has {unknown[1]!r}; expected only {', '.join(takes)}"
        if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
            return f"{where} lacks {missing[1]}"
        if unfit := re.fullmatch(r"Expected `(.*)`, got `(.*)`", what):
            expected, got = (
                " or ".join(_WORDS.get(word, word) for word in words.split(" | "))
                for words in unfit.groups()
            )
            return f"{where}: expected {expected}, got {got}"
        return f"{where}: {what[:1].lower()}{what[1:]}"

    def _asked(self, modalities: Sequence[str] | None) -> list[str]:
        """Return which modalities may be used, in the model's order."""
        if modalities is None:
            return list(self._features)
        for name in modalities:
            if name not in self._features:
                raise RefusedError(
                    422,
                    f"modalities: there is no {name!r}; the model takes "
                    f"{', '.join(self._features)}",
                )
        if not modalities:
            raise RefusedError(422, "modalities is empty; leave it out to use all")
        return [name for name in self._features if name in modalities]

    def _arrays(self, item: Any, where: str) -> dict[str, Floats]:
        """Return the modalities that an item has, each (T, D)."""
        given = ((name, getattr(item, field)) for name, field in self._fields.items())
        return {
            name: self._array(text, self._features[name], f"{where}.{name}")
            for name, text in given
            if text not in (None, _NULL)
        }

    def _array(self, text: msgspec.Raw, shape: tuple[int, ...], where: str) -> Floats:
        *steps, width = shape
        most = min([self._max_steps, *steps])
        rows = self._decoded(self._rows, text, where)
        if not rows:
            raise RefusedError(422, f"{where} has no steps; leave it out where an item lacks it")
        if len(rows) > most:
            raise RefusedError(422, f"{where} has {len(rows)} steps; expected {most} at most")
        array = np.empty((len(rows), width), dtype=np.float32)
        with np.errstate(over="ignore"):
            for step, row in enumerate(rows):
                numbers = self._decoded(self._row, row, f"{where}[{step}]")
                if len(numbers) != width:
                    raise RefusedError(
                        422, f"{where}[{step}] is {len(numbers)} wide; the model takes {width}"
                    )
                array[step] = numbers
        if not np.isfinite(array).all():
            step, column = np.argwhere(~np.isfinite(array))[0]
            raise RefusedError(
                422, f"{where}[{step}][{column}] is too large; expected a 32-bit float"
            )
        return array if self._last_steps is None else array[-self._last_steps :].copy()

    def _sequences(self, name: str, arrays: Sequence[Mapping[str, Floats]]) -> Sequences:
        lacking = np.empty((0, self._features[name][-1]), dtype=np.float32)
        found = [each.get(name, lacking) for each in arrays]
        lengths = np.array([len(each) for each in found], dtype=np.int64)
        return Sequences(np.concatenate(found), np.cumsum(lengths) - lengths, lengths)
