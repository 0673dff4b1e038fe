"""What goes over the wire, and the only place that knows the record keys.

One message each way per client and round. Server to client: `Downlink`. Client to server: `Uplink`.
Before that, once per node: a query, answered by `NodeDescription`.

All tensors of a message travel as one array, see `common.wire`: Flower fetches every array of a
message in requests of its own, at each hop between server and client.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from common.clients import ClientKey
from common.data.extractor import MAX_IDENTITY
from common.data.moments import FeatureMoments
from common.errors import parsed_as
from common.messages import ClientDescription, Downlink, NodeDescription, Uplink
from common.model.linear import MOST_FEATURES, LinearSums
from common.task import Task
from common.wire import (
    DECODER,
    ENCODER,
    ProtocolError,
    TensorGroups,
    posterior_groups,
    read_posteriors,
    read_tensors,
    symmetric,
    upper_triangle,
    write_tensors,
)

VERSION = 7

# Record keys.
_ABOUT = "about"
_METRICS = "metrics"
_FAILURE = "failure"
_TENSORS = "tensors"  # also the name and the type of the one array in it

# Groups of tensors, like those of `common.wire`.
_MOMENTS = "moments"
_LINEAR = "linear"

# Fields of the records, and their types; vectors travel as lists.
_KEY = {"modality": str, "part": int}
_DOWNLINK = _KEY | {"round": int, "prior": list, "lr-scale": float, "corrects-labels": bool}
_DOWNLINK |= {"evaluates": bool}
_UPLINK = _KEY | {"round": int}
_FIGURES = {"examples": int, "train-loss": float, "evidence": list, "agreement": list, "steps": int}
_DESCRIPTION = {"version": int, "clients": int, "error": str}
_CLIENT = _KEY | {"examples": int, "task": str, "label-sums": list, "label-names": str}
_CLIENT |= {"extractor": str}

# Attributes of the messages that travel under another name.
_ATTRIBUTES = {"evidence": "calibration_sums", "agreement": "label_agreement"}

#: Characters of a client's reason that are kept.
MAX_REASON = 300


class ClientFailureError(ProtocolError):
    """A client says itself that it failed; its message is the client's reason."""


# Every decoder below raises `ProtocolError` where a record or a value is missing, or of the wrong
# type or shape.


def encode_downlink(downlink: Downlink, like: RecordDict | None = None) -> RecordDict:
    """Return the content of the message; `like` is another with the same arrays, to reuse."""
    groups = {ENCODER: downlink.encoder, DECODER: downlink.decoder}
    tensors = like[_TENSORS] if like else _tensors_record(groups)
    return RecordDict({_ABOUT: ConfigRecord(_fields(downlink, _DOWNLINK)), _TENSORS: tensors})


def decode_downlink(content: RecordDict) -> Downlink:
    """Read the content of the message; weights that came as float16 become float32."""
    about = _read(content, _ABOUT, ConfigRecord, _DOWNLINK)
    groups = read_tensors(tensor_bytes(content), (ENCODER, DECODER))
    encoder, decoder = (
        {name: t.float() if t.dtype is torch.float16 else t for name, t in groups[group].items()}
        for group in (ENCODER, DECODER)
    )
    return Downlink(encoder=encoder, decoder=decoder, **about)


def encode_uplink(uplink: Uplink) -> RecordDict:
    """Return the content of the message."""
    encoder = posterior_groups(ENCODER, uplink.encoder)
    return RecordDict(
        {
            _ABOUT: ConfigRecord(_fields(uplink, _UPLINK)),
            _TENSORS: _tensors_record({**encoder, **posterior_groups(DECODER, uplink.decoder)}),
            _METRICS: MetricRecord(_fields(uplink, _FIGURES)),
        }
    )


def encode_failure(reason: str) -> RecordDict:
    """Return the content of the message that a client sends instead of an uplink."""
    return RecordDict({_FAILURE: ConfigRecord({"reason": reason})})


def decode_uplink(content: RecordDict) -> Uplink:
    """Read the content of the message; `ClientFailureError` if the client says that it failed."""
    if isinstance(content.get(_FAILURE), ConfigRecord):
        failure = _read(content, _FAILURE, ConfigRecord, {"reason": str})
        raise ClientFailureError(" ".join(failure["reason"].splitlines())[:MAX_REASON])
    about = _read(content, _ABOUT, ConfigRecord, _UPLINK)
    metrics = _read(content, _METRICS, MetricRecord, _FIGURES)
    encoder, decoder = read_posteriors(tensor_bytes(content))
    return Uplink(encoder=encoder, decoder=decoder, **about, **metrics)


def encode_query() -> RecordDict:
    """Return the content of the message that asks a node to describe itself."""
    return RecordDict({_ABOUT: ConfigRecord({"version": VERSION})})


def encode_description(description: NodeDescription) -> RecordDict:
    """Return the content of the message."""
    clients, error = description.clients, description.error
    about = ConfigRecord({"version": VERSION, "clients": len(clients), "error": error})
    content = RecordDict({_ABOUT: about})
    groups = {}
    for index, client in enumerate(clients):
        fields = _fields(client, _CLIENT) | {"label-names": json.dumps(client.label_names)}
        content[f"{_ABOUT}-{index}"] = ConfigRecord(fields)
        groups[f"{_MOMENTS}-{index}"] = {
            name: torch.from_numpy(array) for name, array in vars(client.moments).items()
        }
        if (sums := client.linear) is not None:
            scatter = upper_triangle(sums.scatter)
            groups[f"{_LINEAR}-{index}"] = {"mean": sums.mean, "scatter": scatter}
    content[_TENSORS] = _tensors_record(groups)
    return content


def decode_description(content: RecordDict) -> NodeDescription:
    """Read the content of the message; refuses another version of the protocol."""
    about = _read(content, _ABOUT, ConfigRecord, _DESCRIPTION)
    if about["version"] != VERSION:
        raise ProtocolError(f"protocol version {about['version']}, expected {VERSION}")
    if not 0 <= about["clients"] < len(content):
        raise ProtocolError(f"{about['clients']} clients in {len(content)} records")
    indices = range(about["clients"])
    names = [f"{group}-{index}" for group in (_MOMENTS, _LINEAR) for index in indices]
    groups = read_tensors(tensor_bytes(content), names)
    clients = []
    for index in indices:
        client = _read(content, f"{_ABOUT}-{index}", ConfigRecord, _CLIENT)
        if (task := client["task"]) not in set(Task):
            raise ProtocolError(
                f"{_ABOUT}-{index}.task is {task!r}, expected one of {', '.join(Task)}"
            )
        moments = _moments(groups[name := f"{_MOMENTS}-{index}"], name)
        if len(client["extractor"]) > MAX_IDENTITY:
            raise ProtocolError(f"{_ABOUT}-{index}.extractor is longer than {MAX_IDENTITY}")
        called = _names(client["label_names"], f"{_ABOUT}-{index}.label-names")
        client |= {"task": Task(task), "moments": moments, "label_names": called}
        if arrays := groups[name := f"{_LINEAR}-{index}"]:
            features = moments.mean.size
            client["linear"] = _linear_sums(arrays, name, client["examples"], features)
        clients.append(ClientDescription(**client))
    return NodeDescription(tuple(clients), about["error"])


def _names(text: str, where: str) -> tuple[str, ...]:
    """Read a list of texts."""
    try:
        return parsed_as(tuple[str, ...], json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{where} is no list of names") from error


def _moments(arrays: Mapping[str, Tensor], name: str) -> FeatureMoments:
    if set(arrays) != {"count", "mean", "squares"}:
        raise ProtocolError(f"{name} holds {sorted(arrays)}, expected count, mean, squares")
    shapes = {tuple(array.shape) for array in arrays.values()}
    dtypes = {array.dtype for array in arrays.values()}
    if len(shapes) > 1 or () in shapes or dtypes != {torch.float64}:
        raise ProtocolError(f"{name} has shapes {shapes} and types {dtypes}, expected one, float64")
    return FeatureMoments(**{key: array.numpy() for key, array in arrays.items()})


def _linear_sums(
    arrays: Mapping[str, Tensor], name: str, examples: int, features: int
) -> LinearSums:
    """Read the sums of so many items and pooled features; they are checked before they grow."""
    if set(arrays) != {"mean", "scatter"}:
        raise ProtocolError(f"{name} holds {sorted(arrays)}, expected mean, scatter")
    mean, packed = arrays["mean"], arrays["scatter"]
    if {mean.dtype, packed.dtype} != {torch.float64} or mean.ndim != 1:
        raise ProtocolError(f"{name}.mean is {mean.dtype} {tuple(mean.shape)}, expected float64")
    if not features < len(mean) <= MOST_FEATURES:
        raise ProtocolError(
            f"{name} has {len(mean)} features and labels, expected more than {features} and at "
            f"most {MOST_FEATURES}"
        )
    try:
        scatter = symmetric(packed, len(mean))
    except ValueError as error:
        raise ProtocolError(f"{name}.scatter has {error}") from error
    return LinearSums(float(examples), mean, scatter, features)


def tensor_bytes(content: RecordDict) -> bytes:
    """Return the tensors of a message as they came; `ProtocolError` if there are none."""
    record = content.get(_TENSORS)
    if not isinstance(record, ArrayRecord) or set(record) != {_TENSORS}:
        raise ProtocolError(f"record {_TENSORS!r} is missing, with one array of that name")
    return record[_TENSORS].data


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the tensors in a message, their names included."""
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    return sum(len(array.data) for record in records for array in record.values())


def _tensors_record(groups: TensorGroups) -> ArrayRecord:
    data = write_tensors(groups)
    return ArrayRecord({_TENSORS: Array("uint8", (len(data),), "safetensors", data)})


def _fields(message: Any, fields: Mapping[str, type]) -> dict[str, Any]:
    """Return the values that a record has of a message."""
    values = vars(message) | message.key._asdict()
    found = {name: values[_ATTRIBUTES.get(name, name.replace("-", "_"))] for name in fields}
    return {
        name: value.tolist() if isinstance(value, Tensor) else fields[name](value)
        for name, value in found.items()
    }


def _read(
    content: RecordDict,
    name: str,
    kind: type[ConfigRecord] | type[MetricRecord],
    fields: Mapping[str, type],
) -> dict[str, Any]:
    """Return the attributes in a record, which has exactly these fields, of these types."""
    # Not by ``content.array_records`` and the like: each makes a circle of references, in which a
    # message stays in memory until garbage is collected.
    record = content.get(name)
    if not isinstance(record, kind):
        raise ProtocolError(f"record {name!r} is missing")
    if set(record) != set(fields):
        raise ProtocolError(f"record {name!r} holds {sorted(record)}, expected {sorted(fields)}")
    values: dict[str, Any] = {}
    for field, expected in fields.items():
        value: Any = record[field]
        if type(value) is not expected:
            came = type(value).__name__
            raise ProtocolError(f"{name}.{field} is {came}, expected {expected.__name__}")
        if isinstance(value, list):
            if not all(isinstance(number, (int, float)) for number in value):
                raise ProtocolError(f"{name}.{field} holds something that is not a number")
            value = torch.tensor(value, dtype=torch.float64)
        values[_ATTRIBUTES.get(field, field.replace("-", "_"))] = value
    if fields.keys() >= _KEY.keys():
        values["key"] = ClientKey(values.pop("modality"), values.pop("part"))
    return values
