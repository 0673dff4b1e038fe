"""Pooled and centralised: what they are trained on, that they learn it, and that they repeat."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.config import Config, FusionRule, compose_config
from common.data.batching import pad_all
from common.data.dataset import MultimodalDataset
from common.data.federation import JointDataset, load_federation
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.evidence import evidence
from common.model.fusion import fit_fusion
from common.model.predict import predict
from common.task import Task
from server.baselines.baseline import Baseline
from server.baselines.centralised import (
    OtherArchitecture,
    build_other,
    centralised,
    from_mean,
    paired_items,
)
from server.baselines.full_model import FullModel, pooled
from server.baselines.scores import paired_scores
from server.baselines.sites import Sites, load_sites
from server.evaluate import evaluate
from server.model_file import load_model

GROUPS, PER_GROUP = 40, 8
ITEMS = GROUPS * PER_GROUP
ARCHITECTURES = ("centralised", "early_fusion", "cross_modal")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_npz(path: Path, task: Task) -> None:
    """Two modalities that both show, linearly and noisily, what the label is made of.

    Some items lack audio.
    """
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(ITEMS, 3))
    label: Any = {
        Task.regression: 2 * hidden[:, 0],
        Task.classification: hidden.argmax(axis=1),
        Task.multilabel: (hidden > 0).astype(float),
    }[task]
    seen = {
        name: 5 + 3 * (hidden + 0.3 * rng.normal(size=(ITEMS, 3))) for name in ("text", "audio")
    }
    lengths = np.where(np.arange(ITEMS) % 9 == 0, 0, 2)
    rows = np.repeat(seen["audio"], lengths, axis=0)
    np.savez(
        path,
        label=label,
        video=np.arange(ITEMS) // PER_GROUP,
        text=np.stack([seen["text"]] * 2, axis=1).astype(np.float32),
        audio=rows.astype(np.float32),
        audio_offsets=np.r_[0, np.cumsum(lengths)],
    )


def config_of(folder: Path, strategy: str, task: Task = Task.regression, *more: str) -> Config:
    path = folder / f"{task}.npz"
    if not path.exists():
        write_npz(path, task)
    overrides = [
        f"strategy={strategy}",
        "dataset=npz",
        f"dataset.path={path}",
        f"dataset.task={task}",
        "dataset.modalities=[text,audio]",
        "dataset.group=video",
        "model.width=8",
        "model.heads=2",
        "model.layers=1",
        "model.decoder_layers=1",
        "model.embedding_dropout=0",
        "client.local_epochs=6",
        "client.lr=5e-3",
        "client.device=cpu",
        "clients.default=2",
        *more,
    ]
    return compose_config("config", overrides)


def sites_of(folder: Path, strategy: str, task: Task = Task.regression, *more: str) -> Sites:
    config = config_of(folder, strategy, task, *more)
    return load_sites(config, load_federation(config))


def bound_of(sites: Sites) -> Baseline:
    return (pooled if sites.config.strategy.name == "pooled" else centralised)(sites)


def model_of(bound: Baseline) -> nn.Module:
    assert isinstance(bound, FullModel | OtherArchitecture)
    return bound.model


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("strategy", ["pooled", *ARCHITECTURES])
def test_a_linear_task_is_learnt(strategy: str, task: Task, tmp_path: Path) -> None:
    sites = sites_of(tmp_path, strategy, task)
    bound = bound_of(sites)
    losses = [bound.train(number) for number in (1, 2)]
    titles = ["text", "audio"] if strategy == "pooled" else ["multimodal"]
    assert all(list(each) == titles for each in losses)
    assert all(losses[1][title] < losses[0][title] for title in titles)
    scores = bound.scores(sites.data.test)
    assert list(scores) == ["multimodal", "text", "audio"]
    together = scores["multimodal"]
    match task:
        case Task.regression:
            variance = float(sites.data.test.labels.var())
            assert together["mse"] < 0.35 * variance and together["corr"] > 0.85
        case Task.classification:
            assert together["accuracy"] > 0.7 and together["log_loss"] < 0.75 * np.log(3)
        case Task.multilabel:
            assert together["weighted_accuracy"] > 0.75


@pytest.mark.parametrize("strategy", ["pooled", *ARCHITECTURES])
def test_the_same_seed_gives_the_same_bytes(strategy: str, tmp_path: Path) -> None:
    def arrays(seed: int) -> dict[str, Tensor]:
        sites = sites_of(
            tmp_path, strategy, Task.regression, f"seed={seed}", "client.local_epochs=1"
        )
        bound = bound_of(sites)
        # What came before must not matter.
        torch.rand(seed)
        bound.train(1)
        return model_of(bound).state_dict()

    first, again, other = arrays(1), arrays(1), arrays(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_pooled_standardises_with_all_clients_train_items(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "pooled")
    state = model_of(pooled(sites)).state_dict()
    for name, keys in sites.by_modality.items():
        rows = np.concatenate(
            [sites.by_key[key].sequences[item] for key in keys for item in sites.by_key[key].train]
        )
        mean = state[f"encoders.{name}.standardise.mean"].numpy()
        np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-5)


def test_pooled_is_fused_by_the_sum_of_what_clients_see(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "pooled")
    bound = pooled(sites)
    bound.train(1)
    prior = sites.prior()
    labels = np.concatenate([site.labels[site.train] for site in sites.by_key.values()])
    torch.testing.assert_close(
        prior,
        torch.tensor([labels.mean(), labels.var()], dtype=torch.float64),
        rtol=1e-4,
        atol=1e-4,
    )
    seen = {}
    for name, keys in sites.by_modality.items():
        sums = []
        for key in keys:
            site = sites.by_key[key]
            chosen = site.validation
            assert len(chosen) > 0
            with torch.inference_mode():
                outputs = bound.model.eval()(name, pad_all(site.sequences.select(chosen)))
            sums.append(
                evidence(
                    outputs,
                    torch.from_numpy(site.labels[chosen]),
                    prior,
                    site.task,
                    torch.from_numpy(site.groups[chosen]),
                )
            )
        seen[name] = torch.stack(sums).sum(dim=0)
    expected = fit_fusion(FusionRule.auto, Task.regression, prior, seen)
    assert bound.fusion == expected.rule == "reliability"
    assert bound.fusion_weights == pytest.approx(expected.weights, rel=1e-4)
    assert bound.scores(sites.data.test) == evaluate(bound.model, bound.fitted, sites.data.test)


def test_a_model_file_rebuilds_the_model(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "pooled")
    for bound in (pooled(sites), centralised(sites)):
        content = bound.model_file()
        assert content is not None
        (tmp_path / "model.safetensors").write_bytes(content)
        model, fusion = load_model(tmp_path / "model.safetensors")
        assert evaluate(model, fusion, sites.data.test) == bound.scores(sites.data.test)
        assert fusion.rule == bound.fusion and fusion.weights == bound.fusion_weights


# Paired items -----------------------------------------------------------------------------------


def test_paired_items_are_the_clients_train_items_with_every_modality(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "centralised")
    items, data = paired_items(sites), sites.data
    assert isinstance(data, JointDataset)
    expected = set()
    for key, site in sites.by_key.items():
        expected |= set(data.client_items(key).ids[site.train].tolist())
    assert len(items) == sites.train_items == len(expected)
    assert set(items.ids.tolist()) == expected
    assert list(items.sequences) == ["text", "audio"]
    assert all((each.lengths > 0).sum() > len(items) / 2 for each in items.sequences.values())
    assert (items.sequences["audio"].lengths == 0).any()


def test_centralised_standardises_with_all_its_train_items(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "centralised")
    items = paired_items(sites)
    state = model_of(centralised(sites)).state_dict()
    for name, sequences in items.sequences.items():
        mean = state[f"encoders.{name}.standardise.mean"].numpy()
        np.testing.assert_allclose(mean, FeatureMoments.of(sequences).mean, rtol=1e-5)


def test_the_federation_starts_from_the_same_weights(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "centralised")
    first, second = (model_of(build(sites)) for build in (pooled, centralised))
    for (name, array), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(array, other), name


def test_data_that_are_not_paired_are_refused(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "early_fusion")
    unpaired = replace(sites, data=object())  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match="strategy=early_fusion needs paired items; use dataset=npz"
    ):
        centralised(unpaired)


def test_a_client_with_other_features_than_the_evaluation_data_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, "pooled")
    data = load_federation(config)
    assert isinstance(data, JointDataset)
    narrow = replace(
        data.items.sequences["text"], values=data.items.sequences["text"].values[:, :2]
    )
    items = replace(data.items, sequences={**data.items.sequences, "text": narrow})

    odd = replace(data, items=items, shapes={"text": (3,), "audio": (3,)})
    with pytest.raises(UserError, match="text is 2 wide at text-0 but 3 wide in the evaluation"):
        load_sites(config, odd)


# Scores -----------------------------------------------------------------------------------------


def with_gaps(items: MultimodalDataset) -> MultimodalDataset:
    """Take text from some items that have audio."""
    text, audio = items.sequences["text"], items.sequences["audio"]
    gone = (np.arange(len(items)) % 4 == 0) & (audio.lengths > 0)
    text = replace(text, lengths=np.where(gone, 0, text.lengths))
    return replace(items, sequences={"text": text, "audio": audio})


@pytest.mark.parametrize("batch", [7, 256])
def test_scores_of_paired_models_are_those_of_evaluate(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HA-Fedformer can be scored both ways."""
    monkeypatch.setattr("server.baselines.scores.BATCH", batch)
    sites = sites_of(tmp_path, "centralised")
    bound = centralised(sites)
    assert isinstance(bound, FullModel) and bound.fusion == "mean"
    bound.train(1)
    items = with_gaps(sites.data.test)
    forward = partial(from_mean, bound.model)
    found = paired_scores(bound.model, forward, items, Task.regression)
    expected = bound.scores(items)
    assert list(found) == list(expected)
    for title, metrics in found.items():
        for metric, value in metrics.items():
            assert value == pytest.approx(expected[title][metric], rel=1e-4), (title, metric)


def test_training_runs_the_mean_that_is_predicted_with(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "centralised")
    bound = centralised(sites)
    assert isinstance(bound, FullModel)
    inputs = {name: pad_all(each) for name, each in with_gaps(sites.data.test).sequences.items()}
    with torch.inference_mode():
        found = from_mean(bound.model.eval(), inputs)[:, 0]
    torch.testing.assert_close(found, predict(bound.model, bound.fitted, inputs).values)


@pytest.mark.parametrize("strategy", ["early_fusion", "cross_modal"])
def test_other_architectures_score_on_what_has_the_modality(strategy: str, tmp_path: Path) -> None:
    sites = sites_of(tmp_path, strategy)
    bound = centralised(sites)
    assert isinstance(bound, OtherArchitecture) and bound.model_file() is None
    assert bound.fusion == strategy and bound.fusion_weights == {}
    assert bound.parameters == sum(each.numel() for each in bound.model.parameters())
    items = sites.data.test
    having = items.select(np.flatnonzero(items.sequences["audio"].lengths > 0))
    assert 0 < len(having) < len(items)
    assert bound.scores(items)["audio"] == bound.scores(having)["audio"]


def test_other_architectures_leave_the_global_generator_alone(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "early_fusion")
    initial = sites.initial_model({})
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_other(sites, initial)
    assert torch.equal(torch.rand(1), expected)
