"""Means in one piece are what they are one by one: off the wire, and in sums."""

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common import wire
from common.clients import ClientKey
from common.messages import Uplink, no_numbers
from common.posterior import Form, Gaussian, Layout, Means, Posterior
from common.protocol import encode_uplink, tensor_bytes
from common.wire import ProtocolError, read_posteriors
from server.aggregation.pbea import PosteriorSum

SHAPES = {"b.weight": (3, 2), "a": (), "b.bias": (3,), "c": (1, 2, 2)}


def made(seed: int) -> dict[str, Gaussian]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Gaussian(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()
    }


def sent(encoder: Posterior, decoder: Posterior) -> bytes:
    key, none = ClientKey("audio", 0), no_numbers()
    return tensor_bytes(encode_uplink(Uplink(key, 1, encoder, decoder, 5, 0.5, none, none, 1)))


def in_one_piece(posterior: Posterior) -> Means:
    layout = Layout.of({name: each.mean for name, each in posterior.items()})
    return Means(layout, torch.cat([posterior[name].mean.reshape(-1) for name in layout.names]))


def same(left: Posterior, right: Posterior) -> bool:
    return set(left) == set(right) and all(
        torch.equal(left[name].mean, right[name].mean) and left[name].precision is None
        for name in right
    )


@pytest.fixture(autouse=True)
def nothing_read_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_PLAIN", {})


def test_the_second_is_read_in_one_piece_and_both_are_the_same() -> None:
    first, second = sent(made(0), made(1)), sent(made(2), made(3))
    found = read_posteriors(first)
    assert not any(isinstance(part, Means) for part in found)
    assert same(found[0], made(0)) and same(found[1], made(1))
    again = read_posteriors(second)
    assert all(isinstance(part, Means) for part in again)
    assert same(again[0], made(2)) and same(again[1], made(3))
    assert list(again[0]) == sorted(SHAPES) and len(again[0]) == len(SHAPES)
    # Tensors of their own, which may be written to.
    next(iter(again[0].values())).mean.add_(1)
    assert same(read_posteriors(second)[0], made(2))


def test_what_has_a_precision_or_another_type_is_read_one_by_one() -> None:
    plain = made(0)
    sure = plain | {"b.bias": Gaussian(torch.zeros(3), torch.ones(3), Form.diagonal)}
    wide = {name: Gaussian(each.mean.double()) for name, each in plain.items()}
    for encoder in (sure, wide):
        for _ in range(2):
            found, _ = read_posteriors(sent(encoder, plain))
            assert not isinstance(found, Means)
    assert found["a"].mean.dtype is torch.float64


@pytest.mark.parametrize("change", [b"", b"\0" * 4])
def test_a_known_header_on_other_bytes_is_refused_as_ever(change: bytes) -> None:
    whole = sent(made(0), made(1))
    read_posteriors(whole)
    other = whole + change if change else whole[:-4]
    with pytest.raises(ProtocolError, match="the tensors cannot be read"):
        read_posteriors(other)


def test_only_so_many_headers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_MOST_PLAIN", 3)
    for width in range(1, 9):
        read_posteriors(sent({"w": Gaussian(torch.zeros(width))}, made(0)))
        assert len(wire._PLAIN) == min(width, 3)


def test_the_headers_that_are_kept_are_the_last_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_MOST_PLAIN", 2)
    first, *others = [sent({"w": Gaussian(torch.zeros(width))}, made(0)) for width in (1, 2, 3, 4)]
    read_posteriors(first)
    for other in others:
        read_posteriors(other)
        assert isinstance(read_posteriors(first)[0], Means)


def test_long_headers_are_not_kept() -> None:
    """Else a client could fill the server's memory with them, a new one each round."""
    long = {f"{'w' * 200}{number}": Gaussian(torch.zeros(1)) for number in range(400)}
    for _ in range(2):
        assert same(read_posteriors(sent(long, made(0)))[0], long)
    assert wire._PLAIN == {}


def test_empty_arrays_are_read_again_as_before() -> None:
    nothing = {"w": Gaussian(torch.zeros(0))}
    for _ in range(2):
        assert read_posteriors(sent(nothing, made(0)))[0]["w"].mean.shape == (0,)


def test_a_tensor_of_no_part_is_refused() -> None:
    data = safetensors.torch.save({"encoder": torch.zeros(1), "decoder/d": torch.zeros(1)})
    with pytest.raises(ProtocolError, match="tensor 'encoder' is in no part"):
        read_posteriors(data)


def test_parts_that_lie_apart_are_read_one_by_one() -> None:
    """A header need not be sorted; what it says is followed."""
    numbers = torch.arange(4, dtype=torch.float32)
    header = json.dumps(
        {
            "encoder/a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "decoder/d": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            "encoder/b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
        }
    ).encode()
    data = len(header).to_bytes(8, "little") + header + numbers.numpy().tobytes()
    for _ in range(2):
        encoder, decoder = read_posteriors(data)
        assert {name: each.mean.tolist() for name, each in encoder.items()} == {"a": [0], "b": [3]}
        assert decoder["d"].mean.tolist() == [1, 2]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0.1, 50), st.booleans()), min_size=1))
def test_sums_of_both_kinds_are_the_same(clients: list[tuple[int, float, bool]]) -> None:
    one_by_one, mixed, halves = PosteriorSum(), PosteriorSum(), [PosteriorSum(), PosteriorSum()]
    for number, (seed, weight, whole) in enumerate(clients):
        posterior = made(seed)
        either = in_one_piece(posterior) if whole else posterior
        one_by_one = one_by_one.add(posterior, weight)
        mixed = mixed.add(either, weight)
        halves[number % 2] = halves[number % 2].add(either, weight)
    expected = one_by_one.finalize()
    for total in (mixed, halves[0].merge(halves[1]), halves[1].merge(halves[0])):
        close(total.finalize(), expected)


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, array in right.items():
        torch.testing.assert_close(left[name], array)


def test_one_piece_is_multiplied_with_precisions() -> None:
    sure = made(1) | {"b.bias": Gaussian(torch.ones(3), 3 * torch.ones(3), Form.diagonal)}
    total = PosteriorSum().add(in_one_piece(made(0)), 2.0).add(sure, 1.0)
    expected = PosteriorSum().add(made(0), 2.0).add(sure, 1.0)
    close(total.finalize(), expected.finalize())


def test_other_shapes_cannot_be_added() -> None:
    total = PosteriorSum().add(in_one_piece(made(0)), 1.0)
    odd = made(1) | {"a": Gaussian(torch.zeros(2))}
    with pytest.raises(ValueError, match=r"tensor 'a': shapes \(\) and \(2,\) differ"):
        total.add(in_one_piece(odd), 1.0)
    odd = {name: each for name, each in made(1).items() if name != "c"}
    with pytest.raises(ValueError, match=r"tensor 'c' is in one posterior but not in the other"):
        total.add(in_one_piece(odd), 1.0)
    assert not PosteriorSum() and total
