"""What goes over the wire, and the only place that knows the record keys.

One message each way per client and round. Server to client: `Downlink`. Client to server: `Uplink`.
Before that, once per node: a query, answered by `NodeDescription`.

All tensors of a message travel as one array, see `common.wire`: Flower fetches every array of a
message in requests of its own, at each hop between server and client.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from common.clients import ClientKey
from common.data.moments import FeatureMoments
from common.messages import ClientDescription, Downlink, NodeDescription, Uplink
from common.task import Task
from common.wire import (
    DECODER,
    ENCODER,
    ProtocolError,
    TensorGroups,
    posterior_groups,
    read_posteriors,
    read_tensors,
    write_tensors,
)

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)

VERSION = 3

# Record keys.
_ABOUT = "about"
_METRICS = "metrics"
_FAILURE = "failure"
_TENSORS = "tensors"  # also the name and the type of the one array in it

# A group of tensors, like those of `common.wire`.
_MOMENTS = "moments"

# Fields of the records, and their types.
_KEY = {"modality": str, "part": int}
_DOWNLINK = _KEY | {"round": int, "prior": list, "lr-scale": float, "label-shares": list}
_UPLINK = _KEY | {"round": int}
_UPLINK_METRICS = {
    **{"examples": int, "train-loss": float},
    **{"evidence": list, "agreement": list, "steps": int},
}
_DESCRIPTION = {"version": int, "clients": int, "error": str}
_CLIENT = _KEY | {"examples": int, "task": str, "label-sums": list}

#: Characters of a client's reason that are kept.
MAX_REASON = 300


class ClientFailureError(ProtocolError):
    """A client says itself that it failed; its message is the client's reason."""


# Every decoder below raises `ProtocolError` where a record or a value is missing, or of the wrong
# type or shape.


def encode_downlink(downlink: Downlink, like: RecordDict | None = None) -> RecordDict:
    """Return the content of the message; `like` is another with the same arrays, to reuse."""
    about = _key_fields(downlink.key) | {
        "round": downlink.round,
        "prior": downlink.prior.tolist(),
        "lr-scale": downlink.lr_scale,
        "label-shares": downlink.label_shares.tolist(),
    }
    groups = {ENCODER: downlink.encoder, DECODER: downlink.decoder}
    tensors = like[_TENSORS] if like else _tensors_record(groups)
    return RecordDict({_ABOUT: ConfigRecord(about), _TENSORS: tensors})


def decode_downlink(content: RecordDict) -> Downlink:
    """Read the content of the message; weights that came as float16 become float32."""
    about = _read(content, _ABOUT, ConfigRecord, _DOWNLINK)
    groups = read_tensors(tensor_bytes(content), (ENCODER, DECODER))
    encoder, decoder = (
        {
            name: tensor.float() if tensor.dtype is torch.float16 else tensor
            for name, tensor in groups[group].items()
        }
        for group in (ENCODER, DECODER)
    )
    return Downlink(
        _key(about),
        about["round"],
        encoder,
        decoder,
        _numbers(about["prior"], f"{_ABOUT}.prior"),
        about["lr-scale"],
        _numbers(about["label-shares"], f"{_ABOUT}.label-shares"),
    )


def encode_uplink(uplink: Uplink) -> RecordDict:
    """Return the content of the message."""
    metrics: dict[str, Any] = {
        "examples": uplink.examples,
        "train-loss": uplink.train_loss,
        "evidence": uplink.calibration_sums.tolist(),
        "agreement": uplink.label_agreement.tolist(),
        "steps": uplink.steps,
    }
    encoder = posterior_groups(ENCODER, uplink.encoder)
    return RecordDict(
        {
            _ABOUT: ConfigRecord(_key_fields(uplink.key) | {"round": uplink.round}),
            _TENSORS: _tensors_record({**encoder, **posterior_groups(DECODER, uplink.decoder)}),
            _METRICS: MetricRecord(metrics),
        }
    )


def encode_failure(reason: str) -> RecordDict:
    """Return the content of the message that a client sends instead of an uplink."""
    return RecordDict({_FAILURE: ConfigRecord({"reason": reason})})


def decode_uplink(content: RecordDict) -> Uplink:
    """Read the content of the message; `ClientFailureError` if the client says that it failed."""
    if _record(content, _FAILURE, ConfigRecord):
        failure = _read(content, _FAILURE, ConfigRecord, {"reason": str})
        raise ClientFailureError(" ".join(failure["reason"].split())[:MAX_REASON])
    about = _read(content, _ABOUT, ConfigRecord, _UPLINK)
    metrics = _read(content, _METRICS, MetricRecord, _UPLINK_METRICS)
    return Uplink(
        _key(about),
        about["round"],
        *read_posteriors(tensor_bytes(content)),
        metrics["examples"],
        metrics["train-loss"],
        _numbers(metrics["evidence"], f"{_METRICS}.evidence"),
        _numbers(metrics["agreement"], f"{_METRICS}.agreement"),
        metrics["steps"],
    )


def encode_query() -> RecordDict:
    """Return the content of the message that asks a node to describe itself."""
    return RecordDict({_ABOUT: ConfigRecord({"version": VERSION})})


def encode_description(description: NodeDescription) -> RecordDict:
    """Return the content of the message."""
    clients, error = description.clients, description.error
    about = ConfigRecord({"version": VERSION, "clients": len(clients), "error": error})
    content = RecordDict({_ABOUT: about})
    moments = {}
    for index, client in enumerate(clients):
        fields = _key_fields(client.key) | {
            "examples": client.examples,
            "task": str(client.task),
            "label-sums": client.label_sums.tolist(),
        }
        content[f"{_ABOUT}-{index}"] = ConfigRecord(fields)
        moments[f"{_MOMENTS}-{index}"] = {
            name: torch.from_numpy(array) for name, array in vars(client.moments).items()
        }
    content[_TENSORS] = _tensors_record(moments)
    return content


def decode_description(content: RecordDict) -> NodeDescription:
    """Read the content of the message; refuses another version of the protocol."""
    about = _read(content, _ABOUT, ConfigRecord, _DESCRIPTION)
    if about["version"] != VERSION:
        raise ProtocolError(f"protocol version {about['version']}, expected {VERSION}")
    if not 0 <= about["clients"] < len(content):
        raise ProtocolError(f"{about['clients']} clients in {len(content)} records")
    names = tuple(f"{_MOMENTS}-{index}" for index in range(about["clients"]))
    groups = read_tensors(tensor_bytes(content), names)
    clients = tuple(_client(content, index, groups[name]) for index, name in enumerate(names))
    return NodeDescription(clients, about["error"])


def _client(content: RecordDict, index: int, moments: Mapping[str, Tensor]) -> ClientDescription:
    name = f"{_ABOUT}-{index}"
    about = _read(content, name, ConfigRecord, _CLIENT)
    if about["task"] not in set(Task):
        raise ProtocolError(f"{name}.task is {about['task']!r}, expected one of {', '.join(Task)}")
    return ClientDescription(
        _key(about),
        about["examples"],
        Task(about["task"]),
        _numbers(about["label-sums"], f"{name}.label-sums"),
        _moments(moments, f"{_MOMENTS}-{index}"),
    )


def _moments(arrays: Mapping[str, Tensor], name: str) -> FeatureMoments:
    if set(arrays) != {"count", "mean", "squares"}:
        raise ProtocolError(f"{name} holds {sorted(arrays)}, expected count, mean, squares")
    shapes = {tuple(array.shape) for array in arrays.values()}
    dtypes = {array.dtype for array in arrays.values()}
    if len(shapes) > 1 or () in shapes or dtypes != {torch.float64}:
        raise ProtocolError(f"{name} has shapes {shapes} and types {dtypes}, expected one, float64")
    return FeatureMoments(**{key: array.numpy() for key, array in arrays.items()})


def tensor_bytes(content: RecordDict) -> bytes:
    """Return the tensors of a message as they came; `ProtocolError` if there are none."""
    record = _record(content, _TENSORS, ArrayRecord)
    if record is None or set(record) != {_TENSORS}:
        raise ProtocolError(f"record {_TENSORS!r} is missing, with one array of that name")
    return record[_TENSORS].data


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the tensors in a message, their names included."""
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    return sum(len(array.data) for record in records for array in record.values())


def _tensors_record(groups: TensorGroups) -> ArrayRecord:
    data = write_tensors(groups)
    return ArrayRecord({_TENSORS: Array("uint8", (len(data),), "safetensors", data)})


def _numbers(values: list[Any], name: str) -> Tensor:
    if not all(isinstance(value, (int, float)) for value in values):
        raise ProtocolError(f"{name} holds something that is not a number")
    return torch.tensor(values, dtype=torch.float64)


def _key_fields(key: ClientKey) -> dict[str, Any]:
    return {"modality": key.modality, "part": key.part}


def _key(about: Mapping[str, Any]) -> ClientKey:
    return ClientKey(about["modality"], about["part"])


def _record(content: RecordDict, name: str, kind: type[Record]) -> Record | None:
    """Return a record of a kind.

    Not by ``content.array_records`` and the like: each makes a circle of references, in which a
    message stays in memory until garbage is collected.
    """
    record = content.get(name)
    return record if isinstance(record, kind) else None


def _read(
    content: RecordDict,
    name: str,
    kind: type[Record],
    fields: Mapping[str, type],
) -> dict[str, Any]:
    """Return a record that has exactly these fields, of these types."""
    record = _record(content, name, kind)
    if record is None:
        raise ProtocolError(f"record {name!r} is missing")
    if set(record) != set(fields):
        raise ProtocolError(f"record {name!r} holds {sorted(record)}, expected {sorted(fields)}")
    for field, expected in fields.items():
        if type(record[field]) is not expected:
            raise ProtocolError(
                f"{name}.{field} is {type(record[field]).__name__}, expected {expected.__name__}"
            )
    return dict(record)
