"""What goes over the wire, and the only place that knows the record keys.

One message each way per client and round. Server to client: `Downlink`. Client to server: `Uplink`.
Before that, once per node: a query, answered by `NodeDescription`.

All tensors of a message travel as one array, whose bytes are a safetensors file with names like
``encoder/embed.weight``: Flower asks for each array of a message, and for its content, in requests
of their own, at each of the hops between server and client.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError
from torch import Tensor

from common.clients import ClientKey
from common.data.moments import Moments
from common.messages import ClientDescription, Downlink, NodeDescription, Uplink
from common.posterior import Form, Gaussian, Layout, Means, Posterior
from common.task import Task

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)

VERSION = 3

# Record keys.
_ABOUT = "about"
_METRICS = "metrics"
_FAILURE = "failure"
_TENSORS = "tensors"  # the one array's too, and what it says that it is

# Parts: what comes before the slash in a tensor's name.
_ENCODER = "encoder"
_DECODER = "decoder"
_PRECISION = "-precision"  # after the part's
_MOMENTS = "moments"

#: Characters of a client's reason that are kept.
MAX_REASON = 300


class ProtocolError(Exception):
    """A message that does not follow the protocol; says what was expected."""


class ClientFailureError(ProtocolError):
    """A client says itself that it failed; its message is the client's reason."""


def encode_downlink(downlink: Downlink, like: RecordDict | None = None) -> RecordDict:
    """Return the content of the message.

    Parameters
    ----------
    downlink
        What a client receives.
    like
        Another with the same arrays, whose bytes then serve again.
    """
    about = _about(downlink.key) | {
        "round": downlink.round,
        "prior": downlink.prior.tolist(),
        "lr-scale": downlink.lr_scale,
        "label-shares": downlink.label_shares.tolist(),
    }
    tensors = like[_TENSORS] if like else None
    return RecordDict(
        {
            _ABOUT: ConfigRecord(about),
            _TENSORS: tensors
            or _tensors_record({_ENCODER: downlink.encoder, _DECODER: downlink.decoder}),
        }
    )


def decode_downlink(content: RecordDict) -> Downlink:
    """Read the content of the message.

    Raises
    ------
    ProtocolError
        If a record or a value is missing or of the wrong type.
    """
    fields = {"round": int, "prior": list, "lr-scale": float, "label-shares": list}
    about = _read_about(content, fields)
    parts = _read_tensors(tensor_bytes(content), (_ENCODER, _DECODER))
    encoder, decoder = (_widened(parts[part]) for part in (_ENCODER, _DECODER))
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
        "evidence": uplink.evidence.tolist(),
        "agreement": uplink.agreement.tolist(),
        "steps": uplink.steps,
    }
    return RecordDict(
        {
            _ABOUT: ConfigRecord(_about(uplink.key) | {"round": uplink.round}),
            _TENSORS: _tensors_record(
                _posterior_parts(_ENCODER, uplink.encoder)
                | _posterior_parts(_DECODER, uplink.decoder)
            ),
            _METRICS: MetricRecord(metrics),
        }
    )


def encode_failure(reason: str) -> RecordDict:
    """Return the content of the message that a client sends instead of an uplink."""
    return RecordDict({_FAILURE: ConfigRecord({"reason": reason})})


def decode_uplink(content: RecordDict) -> Uplink:
    """Read the content of the message.

    Raises
    ------
    ProtocolError
        If a record or a value is missing or of the wrong type or shape.
    ClientFailureError
        If the client says that it failed.
    """
    if failed := _record(content, _FAILURE, ConfigRecord):
        failure = _typed(failed, _FAILURE, {"reason": str})
        raise ClientFailureError(" ".join(failure["reason"].split())[:MAX_REASON])
    about = _read_about(content, {"round": int})
    metrics = _typed(
        _record(content, _METRICS, MetricRecord),
        _METRICS,
        {"examples": int, "train-loss": float, "evidence": list, "agreement": list, "steps": int},
    )
    encoder, decoder = read_posteriors(tensor_bytes(content))
    return Uplink(
        _key(about),
        about["round"],
        encoder,
        decoder,
        metrics["examples"],
        metrics["train-loss"],
        _numbers(metrics["evidence"], f"{_METRICS}.evidence"),
        _numbers(metrics["agreement"], f"{_METRICS}.agreement"),
        metrics["steps"],
    )


def tensor_bytes(content: RecordDict) -> bytes:
    """Return the tensors of a message as they came.

    Raises
    ------
    ProtocolError
        If there are none.
    """
    record = _record(content, _TENSORS, ArrayRecord)
    if record is None or set(record) != {_TENSORS}:
        raise ProtocolError(f"record {_TENSORS!r} is missing, with one array of that name")
    return record[_TENSORS].data


def read_posteriors(data: bytes) -> tuple[Posterior, Posterior]:
    """Read the posteriors of encoder and decoder from what `tensor_bytes` returned.

    Raises
    ------
    ProtocolError
        If a tensor is missing or of the wrong shape.
    """
    means = (_ENCODER, _DECODER)
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    if (plain := _PLAIN.get(header)) and plain.size == len(data):
        _PLAIN[header] = _PLAIN.pop(header)
        return plain.read(data)
    parts = _read_tensors(data, (*means, *(part + _PRECISION for part in means)))
    if len(header) <= _LONGEST_PLAIN and (plain := _Plain.of(header, parts)):
        # Now it is known that this header describes so many bytes.
        _PLAIN[header] = plain
        while len(_PLAIN) > _MOST_PLAIN:
            _PLAIN.pop(next(iter(_PLAIN)))
    return _posterior(parts, _ENCODER), _posterior(parts, _DECODER)


@dataclass(frozen=True)
class _Plain:
    """Where means lie in the bytes of uplinks that have nothing else, float32 all of them.

    Attributes
    ----------
    size
        Bytes of such an uplink.
    parts
        Of encoder and decoder: the layout, and the first byte and the one after the last.
    """

    size: int
    parts: tuple[tuple[Layout, int, int], ...]

    @classmethod
    def of(cls, header: bytes, parts: Mapping[str, Mapping[str, Tensor]]) -> "_Plain | None":
        """Return that of a safetensors header whose file was read, or None for other uplinks."""
        places = {
            name: each["data_offsets"]
            for name, each in json.loads(header[8:]).items()
            if name != "__metadata__"
        }
        found, start = [], len(header)
        for part in (_ENCODER, _DECODER):
            names = sorted(parts[part])
            ends = [places[f"{part}/{name}"] for name in names]
            together = all(one[1] == other[0] for one, other in itertools.pairwise(ends))
            dtypes = {parts[part][name].dtype for name in names}
            if not together or parts[part + _PRECISION] or dtypes != {torch.float32}:
                return None
            if ends[0][0] == ends[-1][1]:
                return None  # nothing but empty arrays
            layout = Layout.of(parts[part])
            found.append((layout, start + ends[0][0], start + ends[-1][1]))
        return cls(start + max(end for _, end in places.values()), tuple(found))

    def read(self, data: bytes) -> tuple[Posterior, Posterior]:
        """Return encoder and decoder of such an uplink."""
        encoder, decoder = (
            Means(layout, torch.frombuffer(bytearray(data[start:end]), dtype=torch.float32))
            for layout, start, end in self.parts
        )
        return encoder, decoder


#: Headers of uplinks that were read in this process, the last ones last; there is one for each
#: modality. A client may send others, of some length, which must not fill the memory.
_PLAIN: dict[bytes, _Plain] = {}
_MOST_PLAIN = 64
_LONGEST_PLAIN = 1 << 16


def encode_query() -> RecordDict:
    """Return the content of the message that asks a node to describe itself."""
    return RecordDict({_ABOUT: ConfigRecord({"version": VERSION})})


def encode_description(description: NodeDescription) -> RecordDict:
    """Return the content of the message."""
    content = RecordDict(
        {
            _ABOUT: ConfigRecord(
                {
                    "version": VERSION,
                    "clients": len(description.clients),
                    "error": description.error,
                }
            )
        }
    )
    moments = {}
    for index, client in enumerate(description.clients):
        about = _about(client.key) | {
            "examples": client.examples,
            "task": str(client.task),
            "label-sums": client.label_sums.tolist(),
        }
        content[f"{_ABOUT}-{index}"] = ConfigRecord(about)
        moments[f"{_MOMENTS}-{index}"] = {
            name: torch.from_numpy(array) for name, array in vars(client.moments).items()
        }
    content[_TENSORS] = _tensors_record(moments)
    return content


def decode_description(content: RecordDict) -> NodeDescription:
    """Read the content of the message.

    Raises
    ------
    ProtocolError
        If it does not follow the protocol, or another version of it.
    """
    about = _typed(
        _record(content, _ABOUT, ConfigRecord),
        _ABOUT,
        {"version": int, "clients": int, "error": str},
    )
    if about["version"] != VERSION:
        raise ProtocolError(f"protocol version {about['version']}, expected {VERSION}")
    names = tuple(f"{_MOMENTS}-{index}" for index in range(about["clients"]))
    parts = _read_tensors(tensor_bytes(content), names)
    clients = tuple(_client(content, index, parts[name]) for index, name in enumerate(names))
    return NodeDescription(clients, about["error"])


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the tensors in a message, their names included."""
    return sum(
        len(array.data)
        for record in content.values()
        if isinstance(record, ArrayRecord)
        for array in record.values()
    )


def _client(content: RecordDict, index: int, moments: Mapping[str, Tensor]) -> ClientDescription:
    name = f"{_ABOUT}-{index}"
    fields = {"modality": str, "part": int, "examples": int, "task": str, "label-sums": list}
    about = _typed(_record(content, name, ConfigRecord), name, fields)
    if about["task"] not in set(Task):
        raise ProtocolError(f"{name}.task is {about['task']!r}, expected one of {', '.join(Task)}")
    return ClientDescription(
        _key(about),
        about["examples"],
        Task(about["task"]),
        _numbers(about["label-sums"], f"{name}.label-sums"),
        _moments(moments, f"{_MOMENTS}-{index}"),
    )


def _moments(arrays: Mapping[str, Tensor], name: str) -> Moments:
    if set(arrays) != {"count", "mean", "squares"}:
        raise ProtocolError(f"{name} holds {sorted(arrays)}, expected count, mean, squares")
    shapes = {tuple(array.shape) for array in arrays.values()}
    dtypes = {array.dtype for array in arrays.values()}
    if len(shapes) > 1 or () in shapes or dtypes != {torch.float64}:
        raise ProtocolError(f"{name} has shapes {shapes} and types {dtypes}, expected one, float64")
    return Moments(**{key: array.numpy() for key, array in arrays.items()})


def _numbers(values: list[Any], name: str) -> Tensor:
    if not all(isinstance(value, (int, float)) for value in values):
        raise ProtocolError(f"{name} holds something that is not a number")
    return torch.tensor(values, dtype=torch.float64)


def _about(key: ClientKey) -> dict[str, Any]:
    return {"modality": key.modality, "part": key.part}


def _read_about(content: RecordDict, fields: dict[str, type]) -> dict[str, Any]:
    expected = {"modality": str, "part": int, **fields}
    return _typed(_record(content, _ABOUT, ConfigRecord), _ABOUT, expected)


def _key(about: Mapping[str, Any]) -> ClientKey:
    return ClientKey(about["modality"], about["part"])


def _record(content: RecordDict, name: str, kind: type[Record]) -> Record | None:
    """Return a record of a kind.

    Not by ``content.array_records`` and the like: each makes a circle of references, in which a
    message stays in memory until garbage is collected.
    """
    record = content.get(name)
    return record if isinstance(record, kind) else None


def _typed(
    record: ConfigRecord | MetricRecord | None, name: str, fields: dict[str, type]
) -> dict[str, Any]:
    """Check that a record has exactly these fields, of these types."""
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


def _tensors_record(parts: Mapping[str, Mapping[str, Tensor]]) -> ArrayRecord:
    data = safetensors.torch.save(
        {
            # A copy of its own: two names must not share their memory.
            f"{part}/{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }
    )
    return ArrayRecord({_TENSORS: Array("uint8", (len(data),), "safetensors", data)})


def _read_tensors(data: bytes, parts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each part by name; none but these parts may be there."""
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ProtocolError(f"the tensors cannot be read: {error}") from error
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    # In an order of their own: the library's differs from one call to the next, and sums with it.
    for full_name, tensor in sorted(tensors.items()):
        part, slash, name = full_name.partition("/")
        if part not in found or not slash:
            raise ProtocolError(f"tensor {full_name!r} is in no part: expected {', '.join(parts)}")
        found[part][name] = tensor
    return found


def _widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights that came as float16 as the float32 that they are trained in."""
    return {
        name: tensor.float() if tensor.dtype is torch.float16 else tensor
        for name, tensor in tensors.items()
    }


def _pack(gaussian: Gaussian) -> Tensor:
    """Return what of a precision is sent: a symmetric matrix goes as its upper triangle."""
    assert gaussian.precision is not None
    if gaussian.form is not Form.row:
        return gaussian.precision
    size = len(gaussian.precision)
    return gaussian.precision[*torch.triu_indices(size, size)]


def _unpack(packed: Tensor, columns: int) -> Tensor:
    count = columns * (columns + 1) // 2
    # Before the indices, which take far more memory than the message did.
    if packed.shape != (count,):
        raise ValueError(f"{packed.numel()} packed values, expected {count}")
    rows, cols = torch.triu_indices(columns, columns)
    full = packed.new_empty(columns, columns)
    full[rows, cols] = packed
    full[cols, rows] = packed
    return full


def _posterior_parts(part: str, posterior: Posterior) -> dict[str, dict[str, Tensor]]:
    precisions = {
        f"{gaussian.form}:{name}": _pack(gaussian)
        for name, gaussian in posterior.items()
        if gaussian.precision is not None
    }
    means = {name: gaussian.mean for name, gaussian in posterior.items()}
    return {part: means, part + _PRECISION: precisions}


def _posterior(parts: Mapping[str, Mapping[str, Tensor]], part: str) -> dict[str, Gaussian]:
    means, precisions = parts[part], parts[part + _PRECISION]
    posterior = {name: Gaussian(mean) for name, mean in means.items()}
    for key, packed in precisions.items():
        form, _, name = key.partition(":")
        if name not in means or form not in (Form.diagonal, Form.row):
            raise ProtocolError(f"precision {key!r} belongs to no array")
        if posterior[name].precision is not None:
            raise ProtocolError(f"{name} has two precisions")
        mean = means[name]
        try:
            precision = _unpack(packed, mean[0].numel()) if form == Form.row else packed
            posterior[name] = Gaussian(mean, precision, Form(form))
        except (ValueError, IndexError) as error:
            raise ProtocolError(f"precision of {name}: {error}") from error
    return posterior
