"""Updates that make predictions worse, and how they are found."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.metrics import log_loss
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
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
    Fit,
    Fits,
    fit_outputs,
    harmed,
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


def fits_with(losses: Tensor, descents: Tensor | None = None) -> Fits:
    """Make fits of audio whose losses fall by their slopes on the way to scores of 0."""
    slopes = torch.zeros(len(losses)) if descents is None else -descents
    return {"audio": Fit(losses, torch.ones(len(losses), 1), slopes[:, None])}


@pytest.mark.parametrize("correlation", [0.9, 0.3, 0.0, -0.7])
def test_the_loss_of_numbers_is_what_a_rising_line_leaves_unexplained(correlation: float) -> None:
    fits = fit_outputs(opinions(*numbers(correlation)), PRIOR, Task.regression)
    expected = 1 - max(correlation, 0.0) ** 2
    assert fits["audio"].losses.mean().item() == pytest.approx(expected, abs=1e-9)


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
    found = fit_outputs(items, prior, Task.classification)["audio"].losses.mean().item()
    assert found == pytest.approx(min(losses) / losses[0], rel=2e-3)


def test_a_site_with_one_class_is_not_to_blame_for_its_likelihood() -> None:
    rng = np.random.default_rng(6)
    labels = torch.from_numpy(rng.integers(3, size=300))
    scores = torch.from_numpy(rng.normal(size=(300, 3))) + 2 * torch.eye(3)[labels]
    prior = torch.log(torch.full((3,), 1 / 3, dtype=torch.float64))
    before, after = (
        fit_outputs(opinions(scores + offset, labels), prior, Task.classification)
        for offset in (torch.zeros(3), torch.tensor([2.0, 0.0, 0.0]))
    )
    assert harmed(before, after, 0.01) is None


def test_the_loss_of_labels_has_an_offset_for_each() -> None:
    rng = np.random.default_rng(7)
    labels = torch.from_numpy(rng.integers(2, size=(400, 2))).float()
    scores = torch.from_numpy(rng.normal(size=(400, 2))) + 2 * (2 * labels - 1)
    prior = torch.zeros(2, dtype=torch.float64)
    plain, moved = (
        fit_outputs(opinions(each, labels), prior, Task.multilabel)["audio"].losses.mean().item()
        for each in (scores, scores + torch.tensor([1.0, -1.0]))
    )
    assert 0.1 < plain < 0.6
    assert moved == pytest.approx(plain, rel=0.02)


def test_few_items_and_constant_labels_say_nothing() -> None:
    outputs, labels = numbers(0.5)
    few = torch.arange(200) < FEW_ITEMS - 1
    assert fit_outputs(opinions(outputs, labels, few), PRIOR, Task.regression) == {}
    assert fit_outputs(opinions(outputs, 0 * labels), PRIOR, Task.regression) == {}


@pytest.mark.parametrize(
    ("rise", "spread", "expected"),
    [(0.11, 0.1, "audio"), (0.09, 0.1, None), (0.3, 1.0, "audio"), (0.3, 1.2, None), (-1, 0, None)],
)
def test_a_rise_has_to_be_large_and_sure(rise: float, spread: float, expected: str | None) -> None:
    steps = torch.linspace(-1, 1, 200, dtype=torch.float64)
    before = fits_with(torch.ones(200, dtype=torch.float64))
    after = fits_with(1 + rise + spread * steps / steps.std())
    assert harmed(before, after, 0.1) == expected


def test_losses_that_are_no_numbers_are_a_harm() -> None:
    assert (
        harmed(fits_with(torch.ones(50)), fits_with(torch.full((50,), torch.nan)), 0.1) == "audio"
    )


@pytest.mark.parametrize("task", [Task.regression, Task.classification, Task.multilabel])
def test_the_slopes_of_losses_are_their_derivatives(task: Task) -> None:
    rng = np.random.default_rng(8)
    outputs = torch.from_numpy(rng.normal(size=(60, 1 if task is Task.regression else 3)))
    labels = {
        Task.regression: outputs[:, 0] + torch.from_numpy(rng.normal(size=60)),
        Task.classification: torch.from_numpy(rng.integers(3, size=60)),
        Task.multilabel: torch.from_numpy(rng.integers(2, size=(60, 3))).double(),
    }[task]
    prior = PRIOR if task is Task.regression else torch.zeros(3, dtype=torch.float64).log_softmax(0)
    fit = fit_outputs(opinions(outputs, labels), prior, task)["audio"]
    scores = fit.scores.clone().requires_grad_()
    if task is Task.regression:
        losses = (labels - labels.mean() - scores[:, 0]).square() / labels.var(correction=0)
    else:
        one_hot = torch.eye(3).double()[labels] if task is Task.classification else labels
        each = binary_cross_entropy_with_logits(scores, one_hot, reduction="none").sum(dim=1)
        if task is Task.classification:
            each = cross_entropy(scores, labels, reduction="none")
        losses = each * (fit.losses / each.detach())
    losses.sum().backward()
    assert scores.grad is not None
    torch.testing.assert_close(fit.slopes, -scores.grad)
    torch.testing.assert_close(losses.detach(), fit.losses)


def test_a_descent_is_never_less_than_the_fall_of_the_loss() -> None:
    rng = np.random.default_rng(9)
    labels = torch.from_numpy(rng.integers(3, size=80))
    prior = torch.zeros(3, dtype=torch.float64).log_softmax(0)
    both = [opinions(torch.from_numpy(each), labels) for each in rng.normal(size=(2, 80, 3))]
    one, other = (fit_outputs(items, prior, Task.classification)["audio"] for items in both)
    assert (one.descents(other) >= one.losses - other.losses - 1e-12).all()


def test_evidence_counts_standard_errors_over_all_rounds() -> None:
    rng = np.random.default_rng(1)
    evidence, descents, rises, explained = Evidence(), [], [], []
    for count, shift in ((40, 0.3), (70, 0.1)):
        scores, others, slopes = torch.from_numpy(rng.normal(shift, 1, (3, count, 2)))
        losses, fewer = torch.from_numpy(rng.uniform(0, 1, (2, count)))
        evidence = evidence.add(Fit(losses, scores, slopes), Fit(fewer, others, slopes))
        descents += ((others - scores) * slopes).sum(dim=1).tolist()
        rises += (losses - fewer).tolist()
        explained += (1 - fewer).tolist()
    expected = np.mean(descents) / (np.std(descents) / len(descents) ** 0.5)
    assert evidence.errors == pytest.approx(expected)
    assert evidence.share == pytest.approx(sum(rises) / sum(explained))


def test_without_anything_explained_or_any_difference_there_is_no_evidence() -> None:
    same = fits_with(torch.ones(5, dtype=torch.float64))["audio"]
    assert (Evidence().add(same, same).share, Evidence().add(same, same).errors) == (0, 0)


# Whom it finds ------------------------------------------------------------------------------------


def clients(*effects: float) -> list[Uplink]:
    """Make one update a client, whose mean is its effect on the loss."""
    return [
        uplink(f"audio-{n}", encoder={"e": Gaussian(torch.tensor([effect]))})
        for n, effect in enumerate(effects)
    ]


def fits_after(updates: Sequence[Uplink]) -> Fits:
    """Return losses that the updates' effects add up to, and noise of items."""
    total = sum(update.encoder["e"].mean.item() for update in updates)
    noise = torch.linspace(-0.1, 0.1, 100, dtype=torch.float64)
    return fits_with(1 + total + total * noise)


def examined(
    effects: Sequence[float], suspected: Sequence[int] = (), rounds: int = 1
) -> tuple[set[int], Examination]:
    """Return whose updates are left out of the last round."""
    updates, examination = clients(*effects), Examination(share=0.1)
    keys = {ClientKey("audio", number): 1.0 for number in suspected}
    for _ in range(rounds):
        left, blamed = examination.examine(
            updates,
            updates,
            list,
            fits_after,
            fits_after([]),
            keys,
            lambda some, _: fits_after(some),
        )
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


NOISE = torch.linspace(-1, 1, 100, dtype=torch.float64)


def fits_if(guilty: Collection[int], share: float, errors: float) -> Callable[..., Fits]:
    """Return what fits updates make: each guilty client undoes a share of what is explained, .5.

    `errors` are the standard errors of what one round shows of a client.
    """
    spread = 10 * (0.5 * share) / errors / NOISE.std(correction=0)

    def fits_of(updates: Sequence[Uplink]) -> Fits:
        bad = sum(update.key.part in guilty for update in updates)
        each = 0.5 * share + spread * NOISE
        return {"audio": Fit(0.5 + bad * each, bad * torch.ones(100, 1), -each[:, None])}

    return fits_of


def rounds_of(
    suspected: dict[int, float], guilty: Collection[int], share: float, errors: float, rounds: int
) -> tuple[list[set[int]], Examination]:
    """Return whose updates of three each round leaves out, if some are suspected in the first."""
    updates, examination = clients(0, 0, 0), Examination(share=0.1)
    fits_of, out = fits_if(guilty, share, errors), []
    keys = {ClientKey("audio", part): times for part, times in suspected.items()}
    for number in range(rounds):
        _, blamed = examination.examine(
            updates,
            updates,
            list,
            fits_of,
            fits_of([]),
            {} if number else keys,
            lambda some, _: fits_of(some),
        )
        out.append({key.part for key, _ in blamed})
    return out, examination


def test_evidence_against_a_suspect_adds_up_in_rounds_without_suspicion_too() -> None:
    out, examination = rounds_of({1: 1.0}, [1], share=0.2, errors=2.0, rounds=2)
    assert out == [set(), {1}]
    assert examination.evidence[ClientKey("audio", 1)].errors == pytest.approx(2**0.5 * 2.0)
    assert examination.evidence[ClientKey("audio", 1)].share == pytest.approx(0.2)


def test_little_harm_is_nobodys_fault_however_sure() -> None:
    assert rounds_of({1: 1.0}, [1], share=0.09, errors=50.0, rounds=3)[0] == [set()] * 3


@pytest.mark.parametrize(("times", "expected"), [(9.9, set()), (10.0, {1})])
def test_of_a_change_of_odd_size_less_evidence_is_enough(times: float, expected: set[int]) -> None:
    assert rounds_of({1: times}, [1], share=0.01, errors=1.1, rounds=1)[0] == [expected]


def test_who_does_no_harm_is_left_in_however_odd() -> None:
    assert rounds_of({0: 99.0, 2: 99.0}, [1], share=0.2, errors=9.0, rounds=3)[0] == [set()] * 3


def test_each_is_tried_without_those_who_were_found() -> None:
    """One hides behind another: only without that one does it show."""
    each = 0.1 + 0.1 * NOISE

    def fits_of(updates: Sequence[Uplink]) -> Fits:
        parts = {update.key.part for update in updates}
        bad = 2.0 if 1 in parts else 1.0 if 2 in parts else 0.0
        return {"audio": Fit(0.5 + bad * each, bad * torch.ones(100, 1), -each[:, None])}

    updates, keys = clients(0, 0, 0), {ClientKey("audio", part): 1.0 for part in (1, 2)}
    before = fits_with(torch.ones(100, dtype=torch.float64))
    _, blamed = Examination(share=0.1).examine(
        updates, updates, list, fits_of, before, keys, lambda some, _: fits_of(some)
    )
    assert [key.part for key, _ in blamed] == [1, 2]


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
    assert suspects(updates, sent, {}) == {ClientKey("audio", 2): 1.0}
    clipped = {ClientKey("vision", 0): 7.0}
    assert suspects(updates, sent, clipped) == {ClientKey("audio", 2): 1.0} | clipped
