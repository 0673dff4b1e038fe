"""Updates that make predictions worse, and how they are found."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.metrics import log_loss
from torch import Tensor
from updates import uplink

from common.clients import ClientKey
from common.messages import Uplink
from common.model.calibration import INVERSE_TEMPERATURES
from common.model.fit_joint import FEW_ITEMS, Opinions
from common.model.ha_fedformer import ModelArrays
from common.posterior import Gaussian
from common.task import Task
from server.acceptance.examination import (
    Evidence,
    Examination,
    Losses,
    harmed,
    item_losses,
    suspects,
)

PRIOR = torch.tensor([0.0, 1.0], dtype=torch.float64)


def opinions(outputs: Tensor, labels: Tensor, present: Tensor | None = None) -> Opinions:
    there = torch.ones(len(labels), dtype=torch.bool) if present is None else present
    return Opinions(labels, {"audio": outputs}, {}, {"audio": there}, torch.arange(len(labels)))


def numbers(correlation: float, count: int = 200) -> tuple[Tensor, Tensor]:
    """Make outputs, on a scale and with an offset of their own, and labels."""
    rng = np.random.default_rng(3)
    y, noise = rng.normal(size=(2, count))
    y, noise = y - y.mean(), noise - noise.mean()
    noise -= noise @ y / (y @ y) * y
    y, noise = y / y.std(), noise / noise.std()
    x = correlation * y + (1 - correlation**2) ** 0.5 * noise
    return torch.from_numpy(7 + 30 * x)[:, None], torch.from_numpy(y)


@pytest.mark.parametrize("correlation", [0.9, 0.3, 0.0, -0.7])
def test_the_loss_of_numbers_is_what_a_rising_line_leaves_unexplained(correlation: float) -> None:
    losses = item_losses(opinions(*numbers(correlation)), PRIOR, Task.regression)
    expected = 1 - max(correlation, 0.0) ** 2
    assert losses["audio"].mean().item() == pytest.approx(expected, abs=1e-9)


def test_the_loss_of_classes_is_that_of_the_best_temperature_and_offsets() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(3, size=300)
    scores = rng.normal(size=(300, 3)) + 2 * np.eye(3)[labels] + [0.0, 2.0, -1.0]
    prior = torch.log(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    items = opinions(torch.from_numpy(scores), torch.from_numpy(labels))
    log_p = torch.from_numpy(scores).log_softmax(dim=1)

    def least(beta: float) -> float:
        """Return the log-loss of the offsets that suit the labels best."""
        tempered = (prior + beta * (log_p - prior)).numpy()
        found = minimize(lambda b: log_loss(labels, softmax(tempered + b, axis=1)), np.zeros(3))
        return float(found.fun)

    losses = [least(beta) for beta in INVERSE_TEMPERATURES]
    found = item_losses(items, prior, Task.classification)["audio"].mean().item()
    assert found == pytest.approx(min(losses) / losses[0], rel=2e-3)


def test_a_site_with_one_class_is_not_to_blame_for_its_likelihood() -> None:
    rng = np.random.default_rng(6)
    labels = torch.from_numpy(rng.integers(3, size=300))
    scores = torch.from_numpy(rng.normal(size=(300, 3))) + 2 * torch.eye(3)[labels]
    prior = torch.log(torch.full((3,), 1 / 3, dtype=torch.float64))
    before, after = (
        item_losses(opinions(scores + offset, labels), prior, Task.classification)
        for offset in (torch.zeros(3), torch.tensor([2.0, 0.0, 0.0]))
    )
    assert harmed(before, after, 0.01) is None


def test_the_loss_of_labels_has_an_offset_for_each() -> None:
    rng = np.random.default_rng(7)
    labels = torch.from_numpy(rng.integers(2, size=(400, 2))).float()
    scores = torch.from_numpy(rng.normal(size=(400, 2))) + 2 * (2 * labels - 1)
    prior = torch.zeros(2, dtype=torch.float64)
    plain, moved = (
        item_losses(opinions(each, labels), prior, Task.multilabel)["audio"].mean().item()
        for each in (scores, scores + torch.tensor([1.0, -1.0]))
    )
    assert 0.1 < plain < 0.6
    assert moved == pytest.approx(plain, rel=0.02)


def test_few_items_and_constant_labels_say_nothing() -> None:
    outputs, labels = numbers(0.5)
    few = torch.arange(200) < FEW_ITEMS - 1
    assert item_losses(opinions(outputs, labels, few), PRIOR, Task.regression) == {}
    assert item_losses(opinions(outputs, 0 * labels), PRIOR, Task.regression) == {}


@pytest.mark.parametrize(
    ("rise", "spread", "expected"),
    [(0.11, 0.1, "audio"), (0.09, 0.1, None), (0.3, 1.0, "audio"), (0.3, 1.2, None), (-1, 0, None)],
)
def test_a_rise_has_to_be_large_and_sure(rise: float, spread: float, expected: str | None) -> None:
    steps = torch.linspace(-1, 1, 200, dtype=torch.float64)
    before = {"audio": torch.ones(200, dtype=torch.float64)}
    after = {"audio": 1 + rise + spread * steps / steps.std()}
    assert harmed(before, after, 0.1) == expected


def test_losses_that_are_no_numbers_are_a_harm() -> None:
    before = {"audio": torch.ones(50)}
    assert harmed(before, {"audio": torch.full((50,), torch.nan)}, 0.1) == "audio"


def test_evidence_counts_standard_errors_over_all_rounds() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.3, 1, 40), rng.normal(0.1, 2, 70)
    evidence = Evidence().add(torch.from_numpy(first)).add(torch.from_numpy(second))
    every = np.concatenate([first, second])
    assert evidence.errors == pytest.approx(every.mean() / (every.std() / len(every) ** 0.5))
    assert Evidence().add(torch.zeros(5)).errors == 0


# Whom it finds ------------------------------------------------------------------------------------


def clients(*effects: float) -> list[Uplink]:
    """Make one update a client, whose mean is its effect on the loss."""
    return [
        uplink(f"audio-{n}", encoder={"e": Gaussian(torch.tensor([effect]))})
        for n, effect in enumerate(effects)
    ]


def loss_after(updates: Sequence[Uplink]) -> Losses:
    """Return losses that the updates' effects add up to, and noise of items."""
    total = sum(update.encoder["e"].mean.item() for update in updates)
    noise = torch.linspace(-0.1, 0.1, 100, dtype=torch.float64)
    return {"audio": 1 + total + total * noise}


def examined(
    effects: Sequence[float], suspected: Sequence[int] = (), rounds: int = 1
) -> tuple[set[int], Examination]:
    """Return whose updates are left out of the last round."""
    updates, examination = clients(*effects), Examination(share=0.1)
    keys = {ClientKey("audio", number) for number in suspected}
    for _ in range(rounds):
        left, blamed = examination.examine(updates, updates, list, loss_after, loss_after([]), keys)
        assert {u.key for u in left} | {key for key, _ in blamed} == {u.key for u in updates}
    assert all("worse" in reason for _, reason in blamed)
    return {key.part for key, _ in blamed}, examination


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6))
def test_what_is_left_does_no_harm(effects: list[float]) -> None:
    out, _ = examined(effects)
    left = sum(effect for number, effect in enumerate(effects) if number not in out)
    assert left <= 0.1 + 1e-6
    if sum(effects) <= 0.1:
        assert not out


def test_two_of_five_that_conspire_are_left_out() -> None:
    assert examined([-0.1, 0.9, -0.1, 0.9, -0.1])[0] == {1, 3}


def test_nobody_is_tried_who_is_not_suspected() -> None:
    out, examination = examined([0.05, -0.2], rounds=9)
    assert out == set() and examination.evidence == {}


def test_evidence_against_a_suspect_adds_up() -> None:
    rises = torch.linspace(-1, 1, 100, dtype=torch.float64) + 0.15

    def merge(updates: Sequence[Uplink]) -> Sequence[Uplink]:
        return updates

    def losses_of(updates: Sequence[Uplink]) -> Losses:
        guilty = any(update.key.part == 1 for update in updates)
        return {"audio": torch.ones(100, dtype=torch.float64) + guilty * rises}

    updates, examination = clients(0, 0), Examination(share=0.5)
    found = [
        examination.examine(
            updates, updates, merge, losses_of, losses_of([]), {ClientKey("audio", 1)}
        )
        for _ in range(2)
    ]
    alone = rises.mean().item() / (rises.std(correction=0).item() / 10)
    assert alone == pytest.approx(2.57, abs=0.01)
    assert [[key.part for key, _ in blamed] for _, blamed in found] == [[1], [1]]
    assert examination.evidence[ClientKey("audio", 1)].errors == pytest.approx(2**0.5 * alone)


def test_who_is_scaled_down_or_goes_against_the_others_is_suspected() -> None:
    sent = ModelArrays(
        {"audio": {"e": torch.zeros(2)}, "vision": {"e": torch.zeros(2)}}, {"d": torch.zeros(2)}
    )

    def moved(name: str, encoder: Sequence[float], decoder: Sequence[float]) -> Uplink:
        parts = ({n: Gaussian(torch.tensor(v))} for n, v in (("e", encoder), ("d", decoder)))
        both = dict(zip(("encoder", "decoder"), parts, strict=True))
        return uplink(name, **both)

    updates = [
        moved("audio-0", [1.0, 0.0], [1.0, 0.0]),
        moved("audio-1", [0.5, 1.0], [1.0, 0.2]),
        moved("audio-2", [-1.0, -0.5], [-1.0, 0.0]),
        # The only one of its modality, by the decoder alone.
        moved("vision-0", [-1.0, 0.0], [1.0, 1.0]),
    ]
    assert set(map(str, suspects(updates, sent, []))) == {"audio-2"}
    clipped = [ClientKey("vision", 0)]
    assert set(map(str, suspects(updates, sent, clipped))) == {"audio-2", "vision-0"}
