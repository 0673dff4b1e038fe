"""Clients alone: each as if trained by hand, and joined by their own experts."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny_runs import SMALL
from torch import Tensor, nn
from wire import assert_same

from common.clients import ClientKey
from common.config import Config, FusionConfig, FusionRule, compose
from common.data.batching import SequenceItems, batches, pad_all
from common.data.dataset import Sequences
from common.data.federation import load_federation
from common.data.moments import FeatureMoments
from common.metrics import compute_metrics
from common.model.calibration import calibration_sums, label_sums, prior_of, standardise
from common.model.fusion import Expert, Fusion, fit_fusion
from common.model.ha_fedformer import (
    HAFedformer,
    ModelArrays,
    build_model,
    join_arrays,
    set_standardisation,
    split_arrays,
)
from common.seeding import derive_seed
from common.task import Task
from server.baselines.baseline import Sites, load_sites
from server.baselines.local import ExpertPrediction, Local, combine
from server.evaluate import evaluate
from server.run.source import initial_model

SETTINGS = """
strategy=local dataset.num_items=150 dataset.num_speakers=24 dataset.modalities=[language,audio]
model.width=10 client.local_epochs=2
"""


@cache
def sites_of(*overrides: str) -> Sites:
    config = compose(Config, [*SMALL, *SETTINGS.split(), *overrides])
    return load_sites(config, load_federation(config))


def trained_by_hand(sites: Sites, key: ClientKey, rounds: int) -> HAFedformer:
    """Train a client as its own script would, without anything of `server.baselines` but data."""
    config, site = sites.config, sites.by_key[key]
    whole = initial_model(config, sites.data, {})
    parts = split_arrays(whole.state_dict())
    name = key.modality
    spec = replace(whole.spec, features={name: whole.spec.features[name]})
    model = build_model(spec, seed=99)
    model.load_state_dict(join_arrays(ModelArrays({name: parts.encoders[name]}, parts.decoder)))
    set_standardisation(model, name, FeatureMoments.of(site.sequences.select(site.train)))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.client.lr, weight_decay=config.client.weight_decay, fused=True
    )
    own = site.labels[site.train]
    labels = ((site.labels - own.mean()) / own.std()).astype(np.float32)
    items = SequenceItems(site.sequences, labels, site.train)
    model.train()
    for number in range(1, rounds + 1):
        seed = derive_seed(config.seed, "train", number, str(key))
        torch.manual_seed(seed)
        for epoch in range(config.client.local_epochs):
            for padded, labels in batches(items, config.client.batch_size, seed=seed + epoch):
                optimizer.zero_grad()
                (model(name, padded)[:, 0] - labels).abs().mean().backward()
                nn.utils.clip_grad_norm_(model.parameters(), config.client.max_grad_norm)
                optimizer.step()
    return model


def test_each_client_is_trained_as_by_hand() -> None:
    """So no client sees what another does."""
    sites = sites_of("clients.audio=2", "clients.language=1")
    baseline = Local(sites)
    for number in (1, 2):
        baseline.train(number)
    for key, model in baseline.models.items():
        assert_same(
            dict(model.state_dict()), dict(trained_by_hand(sites, key, rounds=2).state_dict())
        )


def predicted(baseline: Local, key: ClientKey, sequences: Sequences) -> Tensor:
    with torch.inference_mode():
        return baseline.models[key].eval()(key.modality, pad_all(sequences))


def own_fusion(baseline: Local, key: ClientKey, rule: FusionRule) -> Fusion:
    """Fit a client's expert from scratch."""
    site = baseline.sites.by_key[key]
    prior = prior_of(label_sums(torch.from_numpy(site.labels[site.train]), site.task, 1), site.task)
    outputs = predicted(baseline, key, site.sequences.select(site.validation))
    labels = torch.from_numpy(standardise(site.labels[site.validation], prior, site.task))
    sums = calibration_sums(outputs, labels, prior, site.task)
    return fit_fusion(rule, site.task, prior, {key.modality: sums})


@pytest.mark.parametrize("rule", [FusionRule.auto, FusionRule.product_of_experts])
def test_losses_and_scores_are_means_over_clients_and_over_products(rule: FusionRule) -> None:
    sites = sites_of("clients.language=3", "clients.audio=2")
    sites = replace(sites, config=replace(sites.config, fusion=FusionConfig(rule)))
    baseline, items = Local(sites), sites.data.test
    losses, scores = baseline.train(1), baseline.scores(items)
    assert list(losses) == ["language", "audio"]
    assert list(scores) == ["multimodal", "language", "audio"]
    for name, keys in sites.by_modality.items():
        own_losses = [baseline.client_losses[str(key)] for key in keys]
        examples = [len(sites.by_key[key].train) for key in keys]
        assert losses[name] == pytest.approx(np.average(own_losses, weights=examples))
        rows = items.in_modalities([name])
        alone = [
            evaluate(baseline.models[key], own_fusion(baseline, key, rule), rows)[name]
            for key in keys
        ]
        for metric, value in scores[name].items():
            assert value == pytest.approx(np.mean([own[metric] for own in alone]), abs=1e-6)
    together = []
    for k in range(3):
        team = [ClientKey("language", k), ClientKey("audio", k % 2)]
        experts = [
            ExpertPrediction(
                key.modality,
                own_fusion(baseline, key, FusionRule.product_of_experts),
                predicted(baseline, key, items.sequences[key.modality]),
                torch.from_numpy(items.sequences[key.modality].present),
            )
            for key in team
        ]
        labels = np.concatenate([sites.by_key[key].labels[sites.by_key[key].train] for key in team])
        prior = torch.tensor([labels.mean(), labels.var()])
        joined = combine(experts, prior, Task.regression)
        assert joined.std is not None
        values, std = joined.values.numpy(), joined.std.numpy()
        given = (Task.regression, items.labels, values, std)
        together.append(compute_metrics(*given, sentiment=True))
    for metric, value in scores["multimodal"].items():
        expected = np.mean([own[metric] for own in together])
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-3), metric


def test_size_and_weights_are_of_one_client_of_each_modality() -> None:
    baseline = Local(sites_of("clients.language=3", "clients.audio=2"))
    assert baseline.fusion == "product_of_experts" and baseline.model_file() is None
    first = [baseline.models[ClientKey(name, 0)] for name in ("language", "audio")]
    assert baseline.parameters == sum(p.numel() for model in first for p in model.parameters())
    assert sum(baseline.fusion_weights.values()) == pytest.approx(1)
    baseline.fitted = {
        key: torch.tensor([200.0, 0, 200, 0, 200, 200 if key.modality == "audio" else 0])
        for key in baseline.models
    }
    assert baseline.fusion_weights["audio"] > 0.9


def test_a_client_without_validation_items_can_be_scored() -> None:
    sites = sites_of("clients.default=1", "client.validation_fraction=0")
    baseline = Local(sites)
    scores = baseline.scores(sites.data.validation)
    assert all(np.isfinite(list(values.values())).all() for values in scores.values())
    assert baseline._expert(ClientKey("audio", 0)).experts["audio"].count == 0


# Experts with priors of their own, against Bayes' rule --------------------------------------------

RULE = FusionRule.product_of_experts
EVERY = torch.ones(3, dtype=torch.bool)


def test_numbers_give_the_exact_posterior_under_the_common_prior() -> None:
    """Experts know N(mean, variance), see y + N(0, noise), and say their exact posterior of y.

    A model gives what was seen, standardised by its prior; its calibration is the posterior's line.
    """
    seen = {"audio": torch.tensor([0.3, -1.0, 2.0]), "vision": torch.tensor([0.5, 1.0, 1.5])}
    experts = []
    for name, noise, mean, variance in (("audio", 0.5, 0.2, 1.0), ("vision", 2.0, -0.4, 3.0)):
        share = variance / (variance + noise)
        expert = Expert(share, 0.0, 1 - share, 1.0, 10.0)
        fusion = Fusion(RULE, Task.regression, (mean, variance), {name: expert})
        outputs = (seen[name][:, None] - mean) / variance**0.5
        experts.append(ExpertPrediction(name, fusion, outputs, EVERY))
    joined = combine(experts, torch.tensor([0.1, 0.7], dtype=torch.float64), Task.regression)
    precision = 1 / 0.7 + 1 / 0.5 + 1 / 2.0
    expected = (0.1 / 0.7 + seen["audio"] / 0.5 + seen["vision"] / 2.0) / precision
    torch.testing.assert_close(joined.values, expected)
    assert joined.std is not None
    torch.testing.assert_close(joined.std, torch.full((3,), precision**-0.5))


@pytest.mark.parametrize("task", [Task.classification, Task.multilabel])
def test_classes_give_the_exact_posterior_under_the_common_prior(task: Task) -> None:
    rng = np.random.default_rng(0)
    shape = (2, 3, 4)
    likelihoods = torch.from_numpy(rng.uniform(0.1, 1.0, size=shape)).log()
    priors = torch.from_numpy(rng.dirichlet(np.ones(4), size=3))
    scores = priors.log() if task is Task.classification else priors.logit()
    experts = [
        ExpertPrediction(
            name,
            Fusion(RULE, task, tuple(scores[index].tolist()), {name: Expert()}),
            (scores[index] + likelihoods[index]).float(),
            EVERY,
        )
        for index, name in enumerate(["audio", "vision"])
    ]
    joined = combine(experts, scores[2], task)
    total = scores[2] + likelihoods.sum(dim=0)
    expected = total.softmax(dim=1) if task is Task.classification else total.sigmoid()
    torch.testing.assert_close(joined.values, expected.float())
    assert joined.std is None


@pytest.mark.parametrize("task", list(Task))
def test_what_an_absent_modality_says_does_not_matter(task: Task) -> None:
    outputs = 1 if task is Task.regression else 4
    prior = torch.tensor([0.1, 0.7]) if task is Task.regression else torch.full((4,), -1.4)
    experts = {"audio": Expert(0.5, 0.1, 0.6), "vision": Expert(0.7, 0.2, 0.8)}
    fusion = Fusion(RULE, task, tuple(prior.tolist()), experts)
    joined = []
    for absent in (0.5, float("nan")):
        said = torch.linspace(-1, 1, 3 * outputs).reshape(3, outputs)
        said[1] = absent
        predictions = [
            ExpertPrediction("audio", fusion, said, torch.tensor([True, False, True])),
            ExpertPrediction("vision", fusion, torch.ones(3, outputs), EVERY),
        ]
        joined.append(combine(predictions, prior, task).values)
    assert torch.equal(*joined) and joined[0].isfinite().all()
