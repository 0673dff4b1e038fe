"""Messages survive the wire, Flower's own included; what does not follow the protocol is named.

Posteriors are read once by the library, then by the places that a known header gives.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from wire import assert_same, put_bytes, put_tensors, tensors_of

from common import wire
from common.clients import ClientKey
from common.data.moments import FeatureMoments
from common.messages import ClientDescription, Downlink, NodeDescription, Uplink
from common.model.linear import MOST_FEATURES, LinearSums
from common.posterior import Form, Gaussian, Posterior, precision_shape
from common.protocol import (
    VERSION,
    decode_description,
    decode_downlink,
    decode_uplink,
    encode_description,
    encode_downlink,
    encode_query,
    encode_uplink,
    payload_bytes,
    tensor_bytes,
)
from common.structures import MOST_INPUTS
from common.task import Task
from common.wire import ProtocolError, read_posteriors

KEY = ClientKey("audio", 3)
DOUBLES = torch.ones(4, dtype=torch.float64)
DECODER = {"head.bias": Gaussian(torch.ones(1))}


def symmetric(size: int, seed: int = 0) -> Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return matrix + matrix.T


def downlink() -> Downlink:
    encoder = {"embed.weight": torch.randn(3, 2, 1), "standardise.mean": torch.randn(2)}
    prior = torch.tensor([0.1, 1e-300, -3.5], dtype=torch.float64)
    return Downlink(KEY, 7, encoder, {"head.bias": torch.randn(1)}, prior, 1 / 3, True)


def uplink_of(encoder: dict[str, Gaussian], decoder: dict[str, Gaussian] | None = None) -> Uplink:
    calibration_sums = torch.tensor([3, 0.1, 1 / 3, 1e-17, -2, 5e8], dtype=torch.float64)
    label_agreement = torch.tensor([1e-300, -1 / 3], dtype=torch.float64)
    posteriors = (Posterior.of(encoder), Posterior.of(decoder or DECODER))
    return Uplink(KEY, 7, *posteriors, 41, 0.123456789, calibration_sums, label_agreement, 12)


def uplink() -> Uplink:
    return uplink_of(
        {
            "embed.weight": Gaussian(torch.randn(3, 2, 2), symmetric(4), Form.row),
            "layers.0.norm.bias": Gaussian(torch.randn(3), torch.rand(3), Form.diagonal),
            "norm.weight": Gaussian(torch.randn(3)),
            "scalar": Gaussian(torch.randn(())),
        },
        {
            "head.weight": Gaussian(torch.randn(1, 3), symmetric(3), Form.row),
            "head.bias": Gaussian(torch.randn(1)),
        },
    )


def linear_sums(examples: int, features: int) -> LinearSums:
    size = features + 3
    mean = torch.randn(size, dtype=torch.float64)
    return LinearSums(float(examples), mean, symmetric(size).double(), features)


def description() -> NodeDescription:
    return NodeDescription(
        tuple(
            ClientDescription(
                ClientKey(modality, part),
                10 + part,
                Task.classification if part else Task.regression,
                torch.tensor([10.0, 0.1 + part, 1 / 3], dtype=torch.float64),
                FeatureMoments(*np.random.default_rng(part).normal(size=(3, *shape))),
                linear_sums(10 + part, int(np.prod(shape))) if part else None,
                ("glad", "très triste") if part else (),
                "log-mel 1 (0123456789ab)" if part else "",
            )
            for modality, part, shape in (("audio", 0, (4,)), ("vision", 12, (2, 4)))
        )
    )


def changed_uplink(more: dict[str, Tensor], without: str = "no such name") -> RecordDict:
    content = encode_uplink(uplink())
    kept = {key: tensor for key, tensor in tensors_of(content).items() if without not in key}
    put_tensors(content, kept | more)
    return content


def through_protobuf(content: RecordDict) -> RecordDict:
    sent = recorddict_to_proto(content).SerializeToString()
    return recorddict_from_proto(RecordDictProto.FromString(sent))


def through_objects(content: RecordDict) -> RecordDict:
    """Take the content apart into chunks and put it together, as the SuperLink's store does."""
    chunks = {name: item.deflate() for name, item in get_all_nested_objects(content).items()}
    inflated = inflate_object_from_contents(content.object_id, chunks)
    assert isinstance(inflated, RecordDict)
    return inflated


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    wire._places.cache_clear()
    wire._triangle.cache_clear()


@pytest.mark.parametrize("wire", [lambda content: content, through_protobuf, through_objects])
def test_messages_survive(wire: Callable[[RecordDict], RecordDict]) -> None:
    sent = downlink()
    assert_same(decode_downlink(wire(encode_downlink(sent))), sent)
    for sent in (uplink(), uplink()):  # the second is read by the places of the first
        found = decode_uplink(wire(encode_uplink(sent)))
        assert_same(found, sent)
        found.encoder.mean.add_(1)  # a tensor of its own, which may be written to
    mistake = NodeDescription((), "data=x.npz: no such file")
    for sent in (description(), NodeDescription(()), mistake):
        assert_same(decode_description(wire(encode_description(sent))), sent)


def test_what_is_received_can_be_written_to_and_sent_from_a_graph_or_not_contiguous() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    sent = Downlink(KEY, 1, {"w": weight.T}, {"v": weight[:, 1]}, torch.zeros(2))
    found = decode_downlink(through_protobuf(encode_downlink(sent)))
    assert torch.equal(found.encoder["w"], weight.detach().T)
    assert torch.equal(found.decoder["v"], weight.detach()[:, 1])
    found.encoder["w"].add_(1)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    form=st.sampled_from(list(Form)),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_every_form_of_precision_survives(
    shape: list[int], form: Form, seed: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    mean, precision = torch.randn(shape), None
    if form is not Form.identity:
        square = symmetric(mean[0].numel(), seed)
        precision = (torch.rand(shape) if form is Form.diagonal else square).to(dtype)
    sent = uplink_of({"layers.0.a:b": Gaussian(mean, precision, form)})
    found = decode_uplink(through_protobuf(encode_uplink(sent))).encoder
    assert_same(found, sent.encoder)
    if form is Form.row:
        received = found["layers.0.a:b"].precision
        assert received is not None and torch.equal(received, received.T)


def test_precisions_of_wide_maps_are_refused() -> None:
    """Else a client could fill the server's memory with their indices: it chooses the width."""
    for size in (MOST_INPUTS, MOST_INPUTS + 1):
        sent = uplink_of({"w": Gaussian(torch.zeros(2, size), symmetric(size), Form.row)})
        content = encode_uplink(sent)
        if size == MOST_INPUTS:
            assert_same(decode_uplink(content).encoder, sent.encoder)
            continue
        with pytest.raises(ProtocolError, match="precision of w: 257 inputs, expected at most 256"):
            decode_uplink(content)


def test_long_headers_are_not_kept() -> None:
    """Else a client could fill the server's memory with them, a new one each round."""
    long = {f"{'w' * 200}{number}": Gaussian(torch.zeros(1)) for number in range(400)}
    for encoder, kept in ((long, 0), (long, 0), (DECODER, 1), (DECODER, 1)):
        sent = uplink_of(encoder)
        assert_same(decode_uplink(encode_uplink(sent)).encoder, sent.encoder)
        assert wire._places.cache_info().currsize == kept


def test_all_tensors_travel_as_one_array() -> None:
    """Each array is requests of its own, wherever Flower passes a message on."""
    for content in (encode_downlink(downlink()), encode_uplink(uplink())):
        assert sum(map(len, content.array_records.values())) == 1


def test_payload_is_the_bytes_of_the_tensors_and_of_their_names() -> None:
    gaussian = Gaussian(torch.zeros(2, 5), symmetric(5), Form.row)
    content = encode_uplink(uplink_of({"w": gaussian}))
    data = tensor_bytes(content)
    header = int.from_bytes(data[:8], "little")
    # The means, one triangle of the precision, and the decoder.
    assert payload_bytes(content) == len(data) == 8 + header + 4 * (2 * 5 + 5 * 6 // 2 + 1)
    assert payload_bytes(encode_query()) == 0


@pytest.mark.parametrize("instead", [None, MetricRecord({"tensors": 1.0})])
@pytest.mark.parametrize("record", ["about", "tensors", "metrics"])
def test_a_record_that_is_missing_or_of_another_kind_is_refused(
    record: str, instead: MetricRecord | None
) -> None:
    content = encode_uplink(uplink())
    del content[record]
    if instead is not None:
        content[record] = ConfigRecord(dict(instead)) if record == "metrics" else instead
    with pytest.raises(ProtocolError, match=f"'{record}' is missing"):
        decode_uplink(content)
    for decode in (decode_downlink, decode_uplink, decode_description):
        with pytest.raises(ProtocolError, match="'about' is missing"):
            decode(RecordDict())


#: Message, record, field, its value instead, and what the error says; None takes it away.
REFUSED_FIELDS = [
    ("downlink", "about", "round", 1.0, "about.round is float"),
    ("downlink", "about", "prior", 0.5, "about.prior is float"),
    ("downlink", "about", "prior", ["a"], "about.prior holds"),
    ("downlink", "about", "corrects-labels", 1, "about.corrects-labels is int, expected bool"),
    ("uplink", "about", "round", None, "'about' holds"),
    ("uplink", "about", "surplus", 1, "'about' holds .*surplus"),
    ("uplink", "about", "round", True, "about.round is bool, expected int"),
    ("uplink", "about", "modality", 2, "about.modality is int, expected str"),
    ("uplink", "metrics", "train-loss", 1, "metrics.train-loss is int"),
    ("uplink", "metrics", "evidence", 0.5, "metrics.evidence is float"),
    ("uplink", "metrics", "agreement", None, "'metrics' holds"),
    ("uplink", "metrics", "steps", 4.0, "metrics.steps is float"),
    ("description", "about-1", "examples", None, "'about-1' holds"),
    ("description", "about-1", "examples", 2.0, "about-1.examples"),
    ("description", "about-1", "task", "rank", "task is 'rank', .*multil"),
    ("description", "about-1", "label-sums", ["x"], "label-sums"),
    ("description", "about", "clients", 3, "about-2"),
    ("description", "about", "clients", 2**40, "1099511627776 clients in 4 records"),
    ("description", "about", "clients", -1, "-1 clients"),
    ("description", "about", "version", 0, f"version 0, expected {VERSION}"),
    ("description", "about", "version", VERSION + 1, f"version {VERSION + 1}, expected {VERSION}"),
]
CODERS = {
    "downlink": (downlink, encode_downlink, decode_downlink),
    "uplink": (uplink, encode_uplink, decode_uplink),
    "description": (description, encode_description, decode_description),
}


@pytest.mark.parametrize(("kind", "record", "field", "value", "words"), REFUSED_FIELDS)
def test_another_field_or_type_is_refused_and_named(
    kind: str, record: str, field: str, value: Any, words: str
) -> None:
    make, encode, decode = CODERS[kind]
    content = encode(make())
    if value is None:
        del content[record][field]
    else:
        content[record][field] = value
    with pytest.raises(ProtocolError, match=words):
        decode(content)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        # embed.weight is (3, 2, 2): 4 columns, 10 values in a triangle.
        ("row:embed.weight", (9,), ["embed.weight", "9", "10"]),
        ("row:embed.weight", (4, 4), ["embed.weight", "16", "10"]),
        ("row:embed.weight", (), ["embed.weight"]),
        ("diagonal:embed.weight", (10,), ["embed.weight", "(10,)", "(3, 2, 2)"]),
        ("diagonal:norm.weight", (1,), ["norm.weight", "(1,)", "(3,)"]),
        ("row:nowhere", (1,), ["row:nowhere"]),
        ("full:embed.weight", (10,), ["full:embed.weight"]),
        ("identity:embed.weight", (10,), ["identity:embed.weight"]),
        ("embed.weight", (10,), ["embed.weight"]),
    ],
)
def test_precision_that_fits_no_array_is_refused_and_named(
    name: str, shape: tuple[int, ...], words: list[str]
) -> None:
    precision = {f"encoder-precision/{name}": torch.ones(shape)}
    content = changed_uplink(precision, without="-precision/")
    with pytest.raises(ProtocolError) as raised:
        decode_uplink(content)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encoder-precision/diagonal:embed.weight", r"embed\.weight"),  # a second one
        *(
            (name, f"'{name}' is in no part: expected encoder, decoder")
            for name in ("head.bias", "decoders/head.bias", "", "moments-0/mean")
        ),
    ],
)
def test_one_tensor_too_many_is_refused_and_named(name: str, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decode_uplink(changed_uplink({name: torch.ones(3, 2, 2)}))


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


HEADER = b'{"decoder/head.bias":{"dtype":"%s","shape":[%s],"data_offsets":[0,%d]}}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"\x93NUMPY\x01\x00",
        b"PK\x03\x04 not a zip",
        b"\x80\x04]\x94.",
        file_of(b"{"),
        (2**60).to_bytes(8, "little") + b"{}",  # a header beyond the end
        file_of(HEADER % (b"F32", b"1000000000000", 4), bytes(4)),  # 8 TB
        file_of(HEADER % (b"F32", b"1", 4), bytes(3)),
        file_of(HEADER % (b"F32", b"1", 4), bytes(5)),
        file_of(HEADER % (b"F32", b"-1", 4), bytes(4)),
        file_of(HEADER % (b"object", b"1", 4), bytes(4)),
        file_of(HEADER % (b"BF16", b"2", 4), bytes(4)),
    ],
)
def test_tensors_that_cannot_be_read_are_refused(data: bytes) -> None:
    content = encode_uplink(uplink())
    put_bytes(content, data)
    with pytest.raises(ProtocolError, match="the tensors cannot be read: "):
        decode_uplink(content)


@pytest.mark.parametrize("names", [["decoder"], ["tensors", "more"], []])
def test_other_arrays_than_the_one_are_refused(names: list[str]) -> None:
    content = encode_uplink(uplink())
    array = content.array_records["tensors"]["tensors"]
    content["tensors"] = ArrayRecord(dict.fromkeys(names, array))
    with pytest.raises(ProtocolError, match="'tensors' is missing, with one array of that name"):
        decode_uplink(content)


NINE, TRIANGLE = (torch.ones(size, dtype=torch.float64) for size in (9, 9 * 10 // 2))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"mean": NINE}, "holds \\['mean'\\], expected mean, scatter"),
        ({"mean": NINE, "scatter": TRIANGLE, "count": torch.ones(1)}, "holds .*count"),
        ({"mean": NINE.float(), "scatter": TRIANGLE}, "expected float64"),
        ({"mean": NINE, "scatter": TRIANGLE.float()}, "expected float64"),
        ({"mean": NINE[None], "scatter": TRIANGLE}, "expected float64"),
        ({"mean": NINE, "scatter": TRIANGLE[1:]}, "44 packed values, expected 45"),
        ({"mean": NINE, "scatter": symmetric(9).double()}, "81 packed values, expected 45"),
        ({"mean": NINE[:8], "scatter": TRIANGLE}, "8 features and labels, expected more than 8"),
        (
            {"mean": torch.ones(MOST_FEATURES + 1, dtype=torch.float64), "scatter": TRIANGLE},
            "1025 features and labels, expected .* at most 1024",
        ),
    ],
)
def test_sums_for_a_linear_expert_that_are_none_are_refused(
    tensors: dict[str, Tensor], words: str
) -> None:
    content = encode_description(description())
    kept = {k: v for k, v in tensors_of(content).items() if not k.startswith("linear-1/")}
    put_tensors(content, kept | {f"linear-1/{name}": each for name, each in tensors.items()})
    with pytest.raises(ProtocolError, match=f"linear-1.* {words}"):
        decode_description(content)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        dict.fromkeys(("count", "mean"), DOUBLES),
        dict.fromkeys(("count", "mean", "squares", "odd"), DOUBLES),
        dict.fromkeys(("count", "mean"), DOUBLES) | {"squares": DOUBLES[:3]},
        dict.fromkeys(("count", "mean", "squares"), DOUBLES[0]),
        dict.fromkeys(("count", "squares"), DOUBLES) | {"mean": DOUBLES.float()},
    ],
)
def test_moments_that_are_none_are_refused_and_named(tensors: dict[str, Tensor]) -> None:
    content = encode_description(description())
    kept = {key: each for key, each in tensors_of(content).items() if "moments-1/" not in key}
    odd = {f"moments-1/{name}": tensor.clone() for name, tensor in tensors.items()}
    put_tensors(content, kept | odd)
    with pytest.raises(ProtocolError, match="moments-1"):
        decode_description(content)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.complex64])
def test_means_of_another_type_are_refused_and_named(dtype: torch.dtype) -> None:
    tensors = {"encoder/a": torch.zeros(2).to(dtype), "decoder/d": torch.zeros(1)}
    with pytest.raises(ProtocolError, match=rf"encoder array 'a' is {dtype} \(2,\), expected"):
        read_posteriors(safetensors.torch.save(tensors))


def test_a_known_header_on_other_bytes_is_refused() -> None:
    data = tensor_bytes(encode_uplink(uplink()))
    read_posteriors(data)
    for other in (data[:-4], data + bytes(4)):
        with pytest.raises(ProtocolError, match="the tensors cannot be read"):
            read_posteriors(other)


def test_empty_arrays_are_read() -> None:
    sent = tensor_bytes(encode_uplink(uplink_of({"w": Gaussian(torch.zeros(0))})))
    for _ in range(2):
        assert read_posteriors(sent)[0]["w"].mean.shape == (0,)


@pytest.mark.parametrize(
    "order", [("encoder/a", "decoder/d", "encoder/b"), ("encoder/b", "encoder/a", "decoder/d")]
)
def test_arrays_in_another_order_are_refused(order: tuple[str, ...]) -> None:
    entries = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]}
        for at, name in enumerate(order)
    }
    with pytest.raises(ProtocolError, match="encoder's arrays do not lie in the order"):
        read_posteriors(file_of(json.dumps(entries).encode(), bytes(12)))


@pytest.mark.parametrize(
    ("form", "precisions"),
    [
        (Form.identity, [(4, 3), ()]),
        (Form.diagonal, [None, (1,), (3,), (4, 1), (3, 3)]),
        (Form.row, [None, (4, 3), (4, 4), (6,)]),
    ],
)
def test_a_precision_of_another_shape_is_refused_and_named(form: Form, precisions: list) -> None:
    expected = str(precision_shape(torch.zeros(4, 3), form))
    for precision in precisions:
        tensor = None if precision is None else torch.ones(precision)
        with pytest.raises(ValueError, match=form) as raised:
            Gaussian(torch.zeros(4, 3), tensor, form)
        assert str(precision) in str(raised.value) and expected in str(raised.value)
