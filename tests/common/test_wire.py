"""Posteriors off the wire: read once by the library, then by the places that its header gives."""

import json

import pytest
import safetensors.torch
import torch

from common import wire
from common.clients import ClientKey
from common.messages import Uplink, no_numbers
from common.posterior import Form, Gaussian, Posterior
from common.protocol import encode_uplink, tensor_bytes
from common.wire import ProtocolError, read_posteriors

SHAPES = {"b.weight": (3, 2), "a": (), "b.bias": (3,), "c": (1, 2, 2)}


def made(seed: int) -> dict[str, Gaussian]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Gaussian(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()
    }


def certain(seed: int) -> dict[str, Gaussian]:
    precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]]) + seed
    return made(seed) | {
        "b.weight": Gaussian(made(seed)["b.weight"].mean, precision, Form.row),
        "b.bias": Gaussian(torch.zeros(3), torch.ones(3) + seed, Form.diagonal),
    }


def sent(encoder: dict[str, Gaussian], decoder: dict[str, Gaussian]) -> bytes:
    key, none = ClientKey("audio", 0), no_numbers()
    uplink = Uplink(key, 1, Posterior.of(encoder), Posterior.of(decoder), 5, 0.5, none, none, 1)
    return tensor_bytes(encode_uplink(uplink))


def assert_same(found: Posterior, expected: dict[str, Gaussian]) -> None:
    assert list(found) == sorted(expected)
    for name, gaussian in expected.items():
        assert torch.equal(found[name].mean, gaussian.mean)
        assert found[name].form is gaussian.form
        if gaussian.precision is not None:
            assert torch.equal(found[name].precision, gaussian.precision)
    assert set(found.precise) == {n for n, g in expected.items() if g.precision is not None}


@pytest.fixture(autouse=True)
def nothing_read_yet() -> None:
    wire._places.cache_clear()


@pytest.mark.parametrize("make", [made, certain])
def test_those_with_a_known_header_are_read_as_the_first(make) -> None:
    for seed in range(3):
        encoder, decoder = read_posteriors(sent(make(seed), made(seed + 10)))
        assert_same(encoder, make(seed))
        assert_same(decoder, made(seed + 10))
        # Tensors of their own, which may be written to.
        encoder.mean.add_(1)
    assert wire._places.cache_info().currsize == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.complex64])
def test_means_of_another_type_are_refused_and_named(dtype: torch.dtype) -> None:
    tensors = {"encoder/a": torch.zeros(2).to(dtype), "decoder/d": torch.zeros(1)}
    with pytest.raises(ProtocolError, match=rf"encoder array 'a' is {dtype} \(2,\), expected"):
        read_posteriors(safetensors.torch.save(tensors))


@pytest.mark.parametrize("change", [b"", b"\0" * 4])
def test_a_known_header_on_other_bytes_is_refused(change: bytes) -> None:
    whole = sent(made(0), made(1))
    read_posteriors(whole)
    with pytest.raises(ProtocolError, match="the tensors cannot be read"):
        read_posteriors(whole + change if change else whole[:-4])


def test_long_headers_are_not_kept() -> None:
    """Else a client could fill the server's memory with them, a new one each round."""
    long = {f"{'w' * 200}{number}": Gaussian(torch.zeros(1)) for number in range(400)}
    for _ in range(2):
        assert_same(read_posteriors(sent(long, made(0)))[0], long)
    assert wire._places.cache_info().currsize == 0


def test_empty_arrays_are_read() -> None:
    nothing = {"w": Gaussian(torch.zeros(0))}
    for _ in range(2):
        assert read_posteriors(sent(nothing, made(0)))[0]["w"].mean.shape == (0,)


@pytest.mark.parametrize(
    "order", [("encoder/a", "decoder/d", "encoder/b"), ("encoder/b", "encoder/a", "decoder/d")]
)
def test_arrays_in_another_order_are_refused(order: tuple[str, ...]) -> None:
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]}
            for at, name in enumerate(order)
        }
    ).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(12)
    with pytest.raises(ProtocolError, match="encoder's arrays do not lie in the order"):
        read_posteriors(data)
