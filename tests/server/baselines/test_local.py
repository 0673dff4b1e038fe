"""Clients alone: each as if trained by hand, and joined by their own experts."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from common.clients import ClientKey
from common.config import FusionConfig, FusionRule, compose_config
from common.data.batching import SequenceItems, batches, pad_all
from common.data.federation import load_federation
from common.data.moments import FeatureMoments
from common.metrics import compute_metrics
from common.model.evidence import evidence, label_sums, prior_of
from common.model.fusion import Expert, Fusion, fit_fusion
from common.model.ha_fedformer import (
    HAFedformer,
    Parts,
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


@cache
def sites_of(*overrides: str) -> Sites:
    config = compose_config("config", [*SMALL, *overrides])
    return load_sites(config, load_federation(config))


def trained_by_hand(sites: Sites, key: ClientKey, rounds: int) -> HAFedformer:
    """Train a client as its own script would, without anything of `server.baselines` but data."""
    config, site = sites.config, sites.by_key[key]
    whole = sites.initial_model({})
    parts = split_arrays(whole.state_dict())
    name = key.modality
    spec = replace(whole.spec, features={name: whole.spec.features[name]})
    model = build_model(spec, seed=99)
    model.load_state_dict(join_arrays(Parts({name: parts.encoders[name]}, parts.decoder)))
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
    """So no client sees what another does."""
    sites = sites_of("clients.audio=2", "clients.language=1")
    baseline = Local(sites)
    for number in (1, 2):
        baseline.train(number)
    for key, model in baseline.models.items():
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


def own_fusion(sites: Sites, baseline: Local, key: ClientKey, rule: FusionRule) -> Fusion:
    """Fit a client's expert from scratch."""
    site, name = sites.by_key[key], key.modality
    prior = prior_of(label_sums(torch.from_numpy(site.labels[site.train]), site.task, 1), site.task)
    with torch.inference_mode():
        outputs = baseline.models[key].eval()(name, pad_all(site.sequences.select(site.validation)))
    labels, groups = (
        torch.from_numpy(each[site.validation]) for each in (site.labels, site.groups)
    )
    seen = evidence(outputs, labels, prior, site.task, groups)
    return fit_fusion(rule, site.task, prior, {name: seen})


@pytest.mark.parametrize("rule", [FusionRule.auto, FusionRule.product_of_experts])
def test_scores_are_means_over_clients_and_over_products(rule: FusionRule) -> None:
    sites = sites_of("clients.language=3", "clients.audio=2")
    sites = replace(sites, config=replace(sites.config, fusion=FusionConfig(rule)))
    baseline = Local(sites)
    losses = baseline.train(1)
    assert list(losses) == ["language", "audio"]
    items = sites.data.test
    scores = baseline.scores(items)
    assert list(scores) == ["multimodal", "language", "audio"]
    for name, count in (("language", 3), ("audio", 2)):
        keys = [ClientKey(name, part) for part in range(count)]
        alone = [
            evaluate(
                baseline.models[key],
                own_fusion(sites, baseline, key, rule),
                items.in_modalities([name]),
            )[name]
            for key in keys
        ]
        for metric, value in scores[name].items():
            assert value == pytest.approx(np.mean([each[metric] for each in alone]), abs=1e-6)
    together = []
    for k in range(3):
        team = [ClientKey("language", k), ClientKey("audio", k % 2)]
        experts = []
        for key in team:
            sequences = items.sequences[key.modality]
            with torch.inference_mode():
                outputs = baseline.models[key].eval()(key.modality, pad_all(sequences))
            fusion = own_fusion(sites, baseline, key, FusionRule.product_of_experts)
            present = torch.from_numpy(sequences.lengths > 0)
            experts.append(ExpertPrediction(key.modality, fusion, outputs, present))
        labels = np.concatenate([sites.by_key[key].labels[sites.by_key[key].train] for key in team])
        prior = torch.tensor([labels.mean(), labels.var()])
        joined = combine(experts, prior, Task.regression)
        assert joined.std is not None
        together.append(
            compute_metrics(
                Task.regression, items.labels, joined.values.numpy(), joined.std.numpy()
            )
        )
    for metric, value in scores["multimodal"].items():
        expected = np.mean([each[metric] for each in together])
        assert value == pytest.approx(expected, rel=1e-3, abs=1e-3), metric


def test_what_it_reports_of_itself() -> None:
    sites = sites_of("clients.language=3", "clients.audio=2")
    baseline = Local(sites)
    assert baseline.fusion == "product_of_experts" and baseline.model_file() is None
    sizes = {
        key.modality: sum(each.numel() for each in model.parameters())
        for key, model in baseline.models.items()
    }
    assert baseline.parameters == sum(sizes.values())
    assert sum(baseline.fusion_weights.values()) == pytest.approx(1)
    baseline._evidence = {
        key: torch.tensor([200.0, 0, 200, 0, 200, 200 if key.modality == "audio" else 0])
        for key in baseline.models
    }
    assert baseline.fusion_weights["audio"] > 0.9


def test_losses_count_examples() -> None:
    sites = sites_of("clients.language=3", "clients.audio=1")
    baseline = Local(sites)
    losses = {}
    for key, training in baseline._trainings.items():
        training.round = lambda seed, key=key: {key.modality: float(key.part)}  # type: ignore[method-assign]
        losses[key] = float(key.part)
    examples = [len(sites.by_key[ClientKey("language", part)].train) for part in range(3)]
    assert len(set(examples)) > 1
    scores = baseline.train(1)
    assert scores["language"] == pytest.approx(np.average(range(3), weights=examples))
    assert scores["audio"] == 0


def test_a_client_without_validation_items_has_an_expert_that_saw_none() -> None:
    sites = sites_of("clients.default=1", "client.validation_fraction=0")
    baseline = Local(sites)
    scores = baseline.scores(sites.data.validation)
    assert all(np.isfinite(list(values.values())).all() for values in scores.values())
    assert (
        Expert().count
        == baseline._fusion(ClientKey("audio", 0), FusionRule.mean).experts["audio"].count
    )
