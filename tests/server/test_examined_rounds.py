"""Rounds that the coordinator's items examine: who is left out, and what is merged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from flwr.app import Message
from memory_federation import BAD, Federation, config_with, update_of
from torch import Tensor
from wire import assert_same

from common.config import Config
from common.model.fit_joint import Opinions
from common.posterior import Gaussian, Posterior
from common.protocol import decode_downlink, encode_uplink
from server import strategy
from server.roster.labels import PooledLabels

#: What decides how good audio is; all that is trained here.
WEIGHT = "norm.bias"
ITEMS = 400
#: Changes count as they are.
WHOLE = "strategy.screening.norm_factor=1000"
#: As the labels of each client are.
ALIKE = PooledLabels(torch.tensor([1.0, 1.7], dtype=torch.float64), skew=0.0)


def weight_of(state: Mapping[str, Tensor]) -> Tensor:
    return state[f"encoders.audio.{WEIGHT}"][0]


def examined(start: float, labels: PooledLabels = ALIKE, *overrides: str) -> Federation:
    """Make a federation where audio's outputs are the labels times its weight, and noise."""
    federation = Federation(config_with("strategy=fedavg", *overrides), labels=labels)
    weight_of(federation.arrays).fill_(start)
    y, noise = torch.randn(2, ITEMS, generator=torch.Generator().manual_seed(1)).double()
    there = {"audio": torch.ones(ITEMS, dtype=torch.bool)}

    def look(state: Mapping[str, Tensor], _: Sequence[str] | None) -> Opinions:
        outputs = (weight_of(state) * y + 0.1 * noise)[:, None]
        return Opinions(y, {"audio": outputs}, {}, there, torch.arange(ITEMS))

    federation.strategy._look = look
    return federation


def moving(good: float, bad: float) -> Callable[[Message, Config], Message]:
    """Return answers of clients that move the weight, `BAD` by another amount, and no other."""

    def answer(message: Message, config: Config) -> Message:
        update, sent = update_of(message, config), decode_downlink(message.content)
        encoder = {name: Gaussian(sent.encoder[name].clone()) for name in update.encoder}
        decoder = {name: Gaussian(sent.decoder[name].clone()) for name in update.decoder}
        encoder[WEIGHT].mean[0] += bad if str(update.key) == BAD else good
        parts = {"encoder": Posterior.of(encoder), "decoder": Posterior.of(decoder)}
        return Message(encode_uplink(replace(update, **parts)), reply_to=message)

    return answer


def left_out(rejected: tuple[str, ...]) -> list[str]:
    return [line.partition(" ")[0] for line in rejected if "make predictions worse" in line]


def test_who_does_harm_is_left_out_and_the_others_are_merged_alone() -> None:
    harmed, other = examined(1.0, ALIKE, WHOLE), examined(1.0, ALIKE, WHOLE)
    merged, report = harmed.round(answer=moving(0.01, -9.0))
    assert left_out(report.rejected) == [BAD] and report.harmful == 1
    assert "audio explains 0% with this one and 99% without it" in report.rejected[0]
    assert report.clients == {"audio": 2, "vision": 2}
    del other.grid.nodes[next(node for node, names in other.nodes.items() if BAD in names)]
    assert_same(merged, other.round(answer=moving(0.01, -9.0))[0])
    assert weight_of(merged) == pytest.approx(1.01)


def test_who_undoes_what_others_learn_is_left_out() -> None:
    federation = examined(start=0.0)
    merged, report = federation.round(answer=moving(0.05, -0.2))
    assert left_out(report.rejected) == [BAD]
    assert weight_of(merged) == pytest.approx(0.05)
    evidence = federation.strategy.state().evidence
    assert {str(key) for key, own in evidence.items() if own.errors > 0} == {BAD}
    resumed = examined(start=0.0)
    resumed.strategy.restore(federation.strategy.state())
    assert resumed.strategy.state().evidence == evidence


def test_who_has_other_labels_is_not_tried() -> None:
    unlike = PooledLabels(torch.tensor([9.0, 1.7], dtype=torch.float64), skew=0.0)
    _, report = examined(0.0, unlike).round(answer=moving(0.05, -0.2))
    assert left_out(report.rejected) == [] and report.clients == {"audio": 3, "vision": 2}


@pytest.mark.parametrize("override", ["strategy.screening.max_loss_rise=null", ""])
def test_without_a_bound_or_items_nobody_looks(override: str) -> None:
    federation = examined(1.0, ALIKE, WHOLE, *filter(None, [override]))
    if not override:
        federation.strategy._look = None
    _, report = federation.round(answer=moving(0.01, -9.0))
    assert left_out(report.rejected) == [] and report.harmful == 0


def test_of_too_many_updates_that_do_harm_none_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy, "MOST_WAITING", 0)
    federation = examined(1.0, ALIKE, WHOLE)
    before = {name: array.clone() for name, array in federation.arrays.items()}
    merged, report = federation.round(answer=moving(0.01, -9.0))
    assert strategy.NONE_COUNTS in report.rejected
    assert_same(merged, before)
    merged, report = examined(start=1.0).round(answer=moving(0.01, 0.01))
    assert report.rejected == () and weight_of(merged) == pytest.approx(1.01)
