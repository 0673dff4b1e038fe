"""The linear experts of whole runs: fitted once, calibrated, in the model from then on."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_runs import begin, cut, go_on
from made_up_models import dataset_for, features_for, model_for
from tiny_runs import tiny
from torch import Tensor

import client.node
import common.model.linear
from client.node import SimulatedNode, describe
from common.config import Standardisation
from common.data.batching import pad_all
from common.data.federation import ClientData, load_federation
from common.data.moments import FeatureMoments
from common.messages import ClientDescription
from common.model.calibration import INVERSE_TEMPERATURES, label_sums, prior_of, standardise, temper
from common.model.ha_fedformer import HAFedformer, set_standardisation
from common.model.linear import LinearSums, fit_linear, measure_linear
from common.task import Task
from server.app import prepare
from server.baselines import run_baseline
from server.model_file import load_model
from server.roster.statistics import pool_moments
from server.run.checkpoint import Checkpoints, read_checkpoint
from server.run.linear import UNKNOWN, best_factor, pool_clients, set_linear

EVERY = ("language", "audio", "vision")


def model_in(folder: Path) -> HAFedformer:
    return load_model(folder / "model.safetensors")[0]


def linear_arrays(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: array for name, array in arrays.items() if ".linear." in name}


# --- Whole runs -------------------------------------------------------------------------------


def test_a_federation_has_the_experts_that_its_clients_sums_give_and_keeps_them(
    tmp_path: Path,
) -> None:
    enough = "dataset.num_items=600"
    begin(tmp_path / "run", enough, "checkpoint.keep=9")
    model = model_in(tmp_path / "run")
    assert model.spec.linear == EVERY
    found = linear_arrays(model.state_dict())
    assert len(found) == 6 and all(array.any() for array in found.values())
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    # A baseline of the same clients has the same ones.
    run = prepare(tiny(enough, "clients.default=1", "strategy=closed_form"), tmp_path / "closed")
    run_baseline(run)
    kept = [read_checkpoint(checkpoints.path(number)).model for number in (1, 2)]
    for other in (model_in(tmp_path / "closed").state_dict(), *kept):
        assert linear_arrays(other).keys() == found.keys()
        for name, array in linear_arrays(other).items():
            assert torch.equal(array, found[name]), name


def test_without_them_nothing_of_them_is_sent_or_kept(tmp_path: Path) -> None:
    config = tiny("strategy.linear=false")
    clients = describe(SimulatedNode(0, 1), config).clients
    assert all(each.linear is None for each in clients)
    begin(tmp_path, "strategy.linear=false", "rounds=1")
    model = model_in(tmp_path)
    assert model.spec.linear == () and not linear_arrays(model.state_dict())


def test_a_federation_starts_at_the_linear_models_scores(tmp_path: Path) -> None:
    """Here two rounds of a tiny network learn next to nothing."""
    data = ("dataset.num_items=400", "rounds=1", "client.lr=1e-6")
    scores = {}
    for name in ("federated", "closed", "without"):
        more = {"closed": ["strategy=closed_form"], "without": ["strategy.linear=false"]}
        overrides = (*data, *more.get(name, []))
        if name == "closed":
            run = prepare(tiny("clients.default=1", *overrides), tmp_path / name)
            scores[name] = run_baseline(run)["test"]["multimodal"]["corr"]
        else:
            begin(tmp_path / name, *overrides)
            summary = json.loads((tmp_path / name / "summary.json").read_text())
            scores[name] = summary["test"]["multimodal"]["corr"]
    assert scores["closed"] > 0.4
    assert scores["federated"] > scores["closed"] - 0.05 > scores["without"] + 0.1


def test_a_checkpoint_without_experts_is_gone_on_from_without(tmp_path: Path) -> None:
    begin(tmp_path, "strategy.linear=false", "rounds=2")
    cut(tmp_path, 1)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("  linear: false\n", ""))  # of before there were
    go_on(tmp_path)
    assert model_in(tmp_path).spec.linear == ()


def test_a_modality_that_is_too_wide_has_none_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common.model.linear, "MOST_FEATURES", 7)
    begin(tmp_path)
    shown = capsys.readouterr().out
    shapes = model_in(tmp_path).spec.features
    wide = [name for name in EVERY if shapes[name][0] + 1 > 7]
    assert 0 < len(wide) < 3
    assert model_in(tmp_path).spec.linear == tuple(name for name in EVERY if name not in wide)
    for name in EVERY:
        assert shown.count(f"{name} has no linear expert: it is ") == (name in wide)


def test_a_modality_for_which_no_client_sends_sums_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = client.node._linear_sums

    def but_audio(data: ClientData, moments: FeatureMoments) -> LinearSums | None:
        return None if data.modality == "audio" else measure(data, moments)

    monkeypatch.setattr("client.node._linear_sums", but_audio)
    begin(tmp_path)
    assert model_in(tmp_path).spec.linear == ("language", "vision")


# --- Sums of clients --------------------------------------------------------------------------


@pytest.mark.parametrize("whose", list(Standardisation))
def test_sums_are_pooled_of_features_as_they_are_trained_on(whose: Standardisation) -> None:
    config = tiny("clients.default=3", "dataset.num_items=900")
    data = load_federation(config)
    clients = describe(SimulatedNode(0, 1), config).clients
    moments: dict[str, FeatureMoments] = {}
    for each in clients:
        name, own = each.key.modality, each.moments
        moments[name] = moments[name].merge(own) if name in moments else own
    pooled = pool_clients(clients, data, moments, whose)
    assert tuple(pooled) == EVERY
    for name in EVERY:
        rows, labels = [], []
        for each in clients:
            if each.key.modality == name:
                site = client.node.client_data(SimulatedNode(0, 1), each.key, config)
                used = each.moments if whose is Standardisation.client else moments[name]
                for item in site.train:
                    x = (site.sequences[item] - used.mean) / used.std
                    rows.append(x.mean(axis=0))
                    labels.append(site.labels[item])
        expected = np.concatenate([rows, np.array(labels)[:, None]], axis=1)
        # Sites are alike here, so nothing is taken from any.
        assert pooled[name].count == len(expected)
        np.testing.assert_allclose(pooled[name].mean, expected.mean(axis=0), atol=1e-5)
        scatter = len(expected) * np.cov(expected, rowvar=False, bias=True)
        np.testing.assert_allclose(pooled[name].scatter, scatter, rtol=1e-4, atol=1e-3)


def test_sums_of_a_client_in_units_of_its_own_are_of_features_as_it_trains_on_them() -> None:
    config = tiny("clients.default=2")
    data = load_federation(config)
    clients = [each for each in describe(SimulatedNode(0, 1), config).clients if each.linear]
    odd = next(each for each in clients if each.key.modality == "audio")
    assert odd.linear is not None
    factor = torch.ones(len(odd.linear.mean), dtype=torch.float64)
    factor[: odd.linear.features] = 1000
    linear = odd.linear.scaled(odd.linear.mean * factor, factor)
    rows = odd.moments
    other = FeatureMoments(rows.count, 1000 * rows.mean, 1e6 * rows.squares)
    moments = pool_moments(clients)

    def pooled(chosen: ClientDescription, units: FeatureMoments) -> LinearSums:
        others = [each for each in clients if each.key != odd.key]
        return pool_clients([*others, chosen], data, moments, units={odd.key: units})["audio"]

    expected = pooled(odd, odd.moments)
    found = pooled(replace(odd, moments=other, linear=linear), other)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.scatter, expected.scatter)


# --- Calibration ------------------------------------------------------------------------------


def test_factor_of_numbers_is_the_slope_between_nothing_and_all() -> None:
    rng = np.random.default_rng(0)
    prior = torch.tensor([3.0, 4.0], dtype=torch.float64)
    outputs = torch.from_numpy(rng.normal(size=(200, 1)))
    for slope in (-0.5, 0.3, 1.7):
        labels = 3 + 2 * (slope * outputs[:, 0] + 0.1 * torch.from_numpy(rng.normal(size=200)))
        z = ((labels - 3) / 2).numpy()
        expected = np.linalg.lstsq(outputs.numpy(), z, rcond=None)[0][0]
        found = best_factor(outputs, labels, prior, Task.regression)
        assert found == pytest.approx(min(max(expected, 0), 1), abs=1e-9)


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_factor_has_the_least_log_loss_and_none_helps_against_nonsense(task: Task) -> None:
    torch.manual_seed(0)
    prior = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    true = prior + torch.randn(800, 3, dtype=torch.float64)
    if task is Task.classification:
        labels = torch.distributions.Categorical(logits=true).sample()
    else:
        labels = torch.bernoulli(true.sigmoid())
    # Four times as sure as it may be: a quarter is best.
    assert best_factor(prior + 4 * (true - prior), labels, prior, task) == pytest.approx(
        0.25, abs=0.13
    )
    assert best_factor(true, labels, prior, task) in (0.707, 1.0)
    nonsense = prior + 3 * torch.randn(800, 3, dtype=torch.float64)
    assert best_factor(nonsense, labels, prior, task) <= 0.125
    factor = best_factor(2 * true, labels, prior, task)
    losses = {}
    for beta in INVERSE_TEMPERATURES[:7]:
        scores = temper(2 * true, prior, beta, task)
        if task is Task.classification:
            losses[beta] = -scores.log_softmax(dim=1)[torch.arange(800), labels].mean().item()
        else:
            sides = torch.where(labels > 0, scores, -scores)
            losses[beta] = -torch.nn.functional.logsigmoid(sides).mean().item()
    assert factor == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize("task", list(Task))
def test_without_items_the_factor_is_a_half(task: Task) -> None:
    prior = torch.tensor([0.0, 1.0])
    assert best_factor(torch.empty(0, 2), torch.empty(0), prior, task) == UNKNOWN == 0.5


@pytest.mark.parametrize("task", list(Task))
def test_the_model_predicts_what_was_fitted_scaled_towards_the_prior(task: Task) -> None:
    rng = np.random.default_rng(3)
    features = features_for({"audio": [0, *rng.integers(1, 5, size=99)]})
    items, model = dataset_for(features, task), model_for(task)
    audio = items.sequences["audio"]
    moments = FeatureMoments.of(audio)
    set_standardisation(model, "audio", moments)
    labels = torch.from_numpy(items.labels)
    prior = prior_of(label_sums(labels, task, model.spec.outputs), task)
    mean, scale = (torch.from_numpy(a) for a in (moments.mean, 1 / moments.std))
    outputs = model.spec.outputs
    sums = measure_linear(audio, items.labels, task, outputs, moments.mean)
    sums = sums.standardised(mean, scale)
    set_linear(model, "audio", sums, prior, items)
    fitted = fit_linear(sums, task, prior)
    pooled = torch.from_numpy(
        np.stack([(audio[i] - moments.mean).mean(axis=0) / moments.std for i in range(1, 100)])
    )
    plain = pooled @ fitted.weight + fitted.bias
    factor = best_factor(plain, labels[1:], prior, task)
    with torch.inference_mode():
        found = model.linear_outputs("audio", pad_all(audio))[1:].double()
    if task is Task.regression:
        expected = factor * plain
        standard = torch.from_numpy(standardise(items.labels[1:], prior, task))
        assert ((found[:, 0] - standard) ** 2).mean() <= (standard**2).mean() + 1e-6
    else:
        expected = prior + factor * (plain - prior)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
