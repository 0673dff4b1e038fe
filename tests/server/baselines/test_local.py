"""Clients alone: each as if trained by hand, and joined by their own experts."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from common.clients import ClientKey
from common.config import Config, FusionConfig, FusionRule, compose_config
from common.data.batching import SequenceItems, batches, pad_all
from common.data.federation import load_federation
from common.data.moments import FeatureMoments
from common.metrics import compute_metrics
from common.model.calibration import calibration_sums, label_sums, prior_of
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
from server.baselines.experts import ExpertPrediction, combine
from server.baselines.local import Local
from server.baselines.sites import Sites, load_sites
from server.evaluate import evaluate

SMALL = (
    "strategy=local",
    "dataset.num_items=150",
    "dataset.num_speakers=24",
    "dataset.modalities=[language,audio]",
    "model.width=10",
    "model.heads=2",
    "model.layers=1",
    "model.decoder_layers=1",
    "client.local_epochs=2",
    "client.device=cpu",
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def small(*overrides: str) -> Config:
    return compose_config("config", [*SMALL, *overrides])


@cache
def sites_of(*overrides: str) -> Sites:
    return load_sites(small(*overrides), load_federation(small(*overrides)))


def trained_by_hand(sites: Sites, key: ClientKey, rounds: int) -> HAFedformer:
    """Train a client as its own script would, without anything of `server.baselines` but data."""
    config, site = sites.config, sites.by_key[key]
    whole = sites.initial_model({})
    parts = split_arrays(whole.state_dict())
    name = key.modality
    spec = replace(whole.spec, features={name: whole.spec.features[name]})
    model = build_model(spec, seed=99)
    model.load_state_dict(join_arrays(ModelArrays({name: parts.encoders[name]}, parts.decoder)))
    set_standardisation(model, name, FeatureMoments.of(site.sequences.select(site.train)))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.client.lr, weight_decay=config.client.weight_decay, fused=True
    )
    items = SequenceItems(site.sequences, site.labels, site.train)
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
    sites = sites_of("clients.default=1")
    bound = Local(sites)
    for number in (1, 2):
        bound.train(number)
    for key, model in bound.models.items():
        expected = trained_by_hand(sites, key, rounds=2).state_dict()
        assert model.state_dict().keys() == expected.keys()
        for name, array in model.state_dict().items():
            assert torch.equal(array, expected[name]), f"{key} {name}"


def test_clients_start_alike_but_for_their_statistics() -> None:
    sites = sites_of("clients.default=2")
    models = Local(sites).models
    whole = sites.initial_model({}).state_dict()
    for key, model in models.items():
        site = sites.by_key[key]
        mean = FeatureMoments.of(site.sequences.select(site.train)).mean
        for name, array in model.state_dict().items():
            if name.endswith("standardise.mean"):
                np.testing.assert_allclose(array.numpy(), mean, rtol=1e-5, atol=1e-6)
            elif "standardise" not in name:
                assert torch.equal(array, whole[name])


def test_what_one_client_does_another_does_not_see() -> None:
    sites, key = sites_of("clients.default=2"), ClientKey("audio", 1)
    among_others, alone = Local(sites), Local(sites)
    among_others.train(1)
    alone._trainings[key].round(derive_seed(sites.config.seed, "train", 1, str(key)))
    first, second = (bound.models[key].state_dict() for bound in (among_others, alone))
    assert all(torch.equal(first[name], second[name]) for name in first)


def own_fusion(sites: Sites, bound: Local, key: ClientKey, rule: FusionRule) -> Fusion:
    """Fit a client's expert from scratch."""
    site, name = sites.by_key[key], key.modality
    prior = prior_of(label_sums(torch.from_numpy(site.labels[site.train]), site.task, 1), site.task)
    with torch.inference_mode():
        outputs = bound.models[key].eval()(name, pad_all(site.sequences.select(site.validation)))
    labels, groups = (
        torch.from_numpy(each[site.validation]) for each in (site.labels, site.groups)
    )
    seen = calibration_sums(outputs, labels, prior, site.task, groups)
    return fit_fusion(rule, site.task, prior, {name: seen})


@pytest.mark.parametrize("rule", [FusionRule.auto, FusionRule.product_of_experts])
def test_scores_are_means_over_clients_and_over_products(rule: FusionRule) -> None:
    sites = sites_of("clients.language=3", "clients.audio=2")
    sites = replace(sites, config=replace(sites.config, fusion=FusionConfig(rule)))
    bound = Local(sites)
    losses = bound.train(1)
    assert list(losses) == ["language", "audio"]
    items = sites.data.test
    found = bound.scores(items)
    assert list(found) == ["multimodal", "language", "audio"]
    for name, count in (("language", 3), ("audio", 2)):
        keys = [ClientKey(name, part) for part in range(count)]
        alone = [
            evaluate(
                bound.models[key],
                own_fusion(sites, bound, key, rule),
                items.in_modalities([name]),
            )[name]
            for key in keys
        ]
        for metric, value in found[name].items():
            assert value == pytest.approx(np.mean([each[metric] for each in alone]), abs=1e-6)
    together = []
    for k in range(3):
        team = [ClientKey("language", k), ClientKey("audio", k % 2)]
        opinions = []
        for key in team:
            sequences = items.sequences[key.modality]
            with torch.inference_mode():
                outputs = bound.models[key].eval()(key.modality, pad_all(sequences))
            fusion = own_fusion(sites, bound, key, FusionRule.product_of_experts)
            present = torch.from_numpy(sequences.lengths > 0)
            opinions.append(ExpertPrediction(key.modality, fusion, outputs, present))
        labels = np.concatenate([sites.by_key[key].labels[sites.by_key[key].train] for key in team])
        prior = torch.tensor([labels.mean(), labels.var()])
        joined = combine(opinions, prior, Task.regression)
        assert joined.std is not None
        together.append(
            compute_metrics(
                Task.regression, items.labels, joined.values.numpy(), joined.std.numpy()
            )
        )
    for metric, value in found["multimodal"].items():
        expected = np.mean([each[metric] for each in together])
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-3), metric


def test_what_it_reports_of_itself() -> None:
    sites = sites_of("clients.language=3", "clients.audio=2")
    bound = Local(sites)
    assert bound.fusion == "product_of_experts" and bound.model_file() is None
    sizes = {
        key.modality: sum(each.numel() for each in model.parameters())
        for key, model in bound.models.items()
    }
    assert bound.parameters == sum(sizes.values())
    assert sum(bound.fusion_weights.values()) == pytest.approx(1)
    bound._calibration_sums = {
        key: torch.tensor([200.0, 0, 200, 0, 200, 200 if key.modality == "audio" else 0])
        for key in bound.models
    }
    assert bound.fusion_weights["audio"] > 0.9


def test_losses_count_examples() -> None:
    sites = sites_of("clients.language=3", "clients.audio=1")
    bound = Local(sites)
    losses = {}
    for key, training in bound._trainings.items():
        training.round = lambda seed, key=key: {key.modality: float(key.part)}  # type: ignore[method-assign]
        losses[key] = float(key.part)
    examples = [len(sites.by_key[ClientKey("language", part)].train) for part in range(3)]
    assert len(set(examples)) > 1
    found = bound.train(1)
    assert found["language"] == pytest.approx(np.average(range(3), weights=examples))
    assert found["audio"] == 0


def test_a_client_without_validation_items_has_an_expert_that_saw_none() -> None:
    sites = sites_of("clients.default=1", "client.validation_fraction=0")
    bound = Local(sites)
    scores = bound.scores(sites.data.validation)
    assert all(np.isfinite(list(values.values())).all() for values in scores.values())
    assert (
        Expert().count
        == bound._fusion(ClientKey("audio", 0), FusionRule.mean).experts["audio"].count
    )
