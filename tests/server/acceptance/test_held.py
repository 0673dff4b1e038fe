"""Updates that wait, in memory or on disk, come back as they were."""

import errno

import pytest
import torch

from common.clients import ClientKey
from common.errors import UserError
from common.messages import Uplink, no_numbers
from common.posterior import Form, Gaussian, Posterior
from common.protocol import encode_uplink, tensor_bytes
from server.acceptance import held
from server.acceptance.held import Held, Updates


def update(part: int) -> Uplink:
    mean = torch.full((3, 2), float(part))
    encoder = {"e": Gaussian(mean, torch.eye(2) * (part + 1), Form.row)}
    decoder = {"d": Gaussian(-mean), "b": Gaussian(mean[0], mean[0] + 1, Form.diagonal)}
    key = ClientKey("audio", part)
    evidence = torch.tensor([1.0, 2.5], dtype=torch.float64)
    return Uplink(key, 1, encoder, decoder, 5, 0.5, evidence, no_numbers(), 1)


def same(left: Posterior, right: Posterior) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name].mean, right[name].mean)
        and left[name].form is right[name].form
        and (left[name].precision is None) == (right[name].precision is None)
        and torch.equal(
            left[name].precision if left[name].precision is not None else torch.zeros(0),
            right[name].precision if right[name].precision is not None else torch.zeros(0),
        )
        for name in left
    )


def put(place: Held, uplink: Uplink) -> Uplink:
    place.put(uplink, tensor_bytes(encode_uplink(uplink)))
    return place.head(uplink.key)


@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_they_come_back_in_any_order(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(held, "IN_MEMORY", limit)
    place, updates = Held(), [update(part) for part in range(5)]
    heads = [put(place, each) for each in updates]
    for head, whole in zip(heads[::-1], updates[::-1], strict=True):
        assert head.encoder == head.decoder == {}
        found = place.get(head)
        assert same(found.encoder, whole.encoder) and same(found.decoder, whole.decoder)
        assert (found.key, found.examples, found.steps) == (head.key, 5, 1)
        assert found.evidence.tolist() == [1.0, 2.5] and found.agreement.tolist() == []
    late = put(place, update(7))
    assert same(place.get(late).encoder, update(7).encoder)


def test_updates_are_read_as_often_as_asked() -> None:
    place = Held()
    updates = Updates([put(place, update(part)) for part in range(3)], place.get)
    for _ in range(2):
        read = list(updates)
        assert [each.key.part for each in read] == [0, 1, 2]
        assert all(same(each.encoder, update(each.key.part).encoder) for each in read)
    assert len(updates) == 3 and list(Updates()) == []


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Held()

    def full(_: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(place._file, "write", full, raising=False)
    with pytest.raises(UserError, match=r"a round cannot be kept in /.*: No space left .* TMPDIR"):
        put(place, update(0))
