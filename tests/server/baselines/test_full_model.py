"""Pooled and centralised: what they are trained on, that they learn it, and that they repeat."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import SMALL

from common.config import Config, FusionRule, compose
from common.data.batching import pad_all
from common.data.federation import JointDataset, load_federation
from common.data.moments import FeatureMoments
from common.errors import UserError
from common.model.calibration import calibration_sums, standardise
from common.model.fusion import fit_fusion
from common.task import Task
from server.baselines.baseline import Sites, load_sites
from server.baselines.full_model import (
    FullModel,
    OtherArchitecture,
    centralised,
    paired_items,
    pooled,
    predict_paired,
)
from server.evaluate import opinions, score

GROUPS, PER_GROUP = 40, 8
ITEMS = GROUPS * PER_GROUP
ARCHITECTURES = ("centralised", "early_fusion", "cross_modal")


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


def config_of(folder: Path, strategy: str, task: Task = Task.regression) -> Config:
    path = folder / f"{task}.npz"
    write_npz(path, task)
    settings = f"""
    strategy={strategy} dataset=file dataset.path={path} dataset.task={task}
    dataset.modalities=[text,audio] dataset.group=video
    model.width=8 model.embedding_dropout=0 client.local_epochs=6 client.lr=5e-3
    """
    return compose(Config, [*SMALL, *settings.split()])


def sites_of(folder: Path, strategy: str, task: Task = Task.regression) -> Sites:
    config = config_of(folder, strategy, task)
    return load_sites(config, load_federation(config))


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("strategy", ["pooled", *ARCHITECTURES])
def test_a_linear_task_is_learnt(strategy: str, task: Task, tmp_path: Path) -> None:
    sites = sites_of(tmp_path, strategy, task)
    baseline = (pooled if strategy == "pooled" else centralised)(sites)
    losses = [baseline.train(number) for number in (1, 2)]
    titles = ["text", "audio"] if strategy == "pooled" else ["multimodal"]
    assert all(list(each) == titles for each in losses)
    assert all(losses[1][title] < losses[0][title] for title in titles)
    scores = baseline.scores(sites.data.test)
    assert list(scores) == ["multimodal", "text", "audio"]
    together = scores["multimodal"]
    if task is Task.regression:
        variance = float(sites.data.test.labels.var())
        assert together["rmse"] ** 2 < 0.35 * variance and together["corr"] > 0.85
    elif task is Task.classification:
        assert together["accuracy"] > 0.7 and together["log_loss"] < 0.75 * np.log(3)
    else:
        assert together["weighted_accuracy"] > 0.75


def test_pooled_is_standardised_and_fused_by_all_clients_sums(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "pooled")
    baseline = pooled(sites)
    baseline.train(1)
    prior = sites.prior(sites.by_key)
    labels = np.concatenate([site.labels[site.train] for site in sites.by_key.values()])
    np.testing.assert_allclose(prior, [labels.mean(), labels.var()], rtol=1e-4, atol=1e-4)
    sums = {}
    for name, keys in sites.by_modality.items():
        held, parts = [sites.by_key[key] for key in keys], []
        rows = np.concatenate([site.sequences[item] for site in held for item in site.train])
        mean = baseline.model.state_dict()[f"encoders.{name}.standardise.mean"]
        np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-5)
        for site in held:
            chosen = site.validation
            assert len(chosen) > 0
            with torch.inference_mode():
                outputs = baseline.model.eval()(name, pad_all(site.sequences.select(chosen)))
            labels = torch.from_numpy(standardise(site.labels[chosen], prior, site.task))
            parts.append(calibration_sums(outputs, labels, prior, site.task))
        sums[name] = torch.stack(parts).sum(dim=0)
    items = opinions(baseline.model, prior, sites.data.validation)
    expected = fit_fusion(FusionRule.auto, Task.regression, prior, sums, items)
    assert baseline.fusion == expected.rule == "calibrated"
    assert baseline.fusion_weights == pytest.approx(expected.weights, rel=1e-4)


# Paired items -----------------------------------------------------------------------------------


def test_paired_items_are_the_clients_train_items_with_every_modality(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "centralised")
    items, data = paired_items(sites), sites.data
    assert isinstance(data, JointDataset)
    held = [data.client_items(key).ids[site.train] for key, site in sites.by_key.items()]
    assert sorted(items.ids) == sorted(set(np.concatenate(held))) == sorted(np.concatenate(held))
    assert list(items.sequences) == ["text", "audio"]
    assert all((each.lengths > 0).sum() > len(items) / 2 for each in items.sequences.values())
    assert (items.sequences["audio"].lengths == 0).any()


def test_baselines_start_alike_but_for_their_statistics(tmp_path: Path) -> None:
    sites = sites_of(tmp_path, "centralised")
    baseline = centralised(sites)
    assert isinstance(baseline, FullModel)
    state = baseline.model.state_dict()
    for name, sequences in paired_items(sites).sequences.items():
        mean = state[f"encoders.{name}.standardise.mean"].numpy()
        np.testing.assert_allclose(mean, FeatureMoments.of(sequences).mean, rtol=1e-5)
    for name, array in pooled(sites).model.named_parameters():
        assert torch.equal(array, state[name]), name


def test_a_client_with_other_features_than_the_evaluation_data_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, "pooled")
    narrow = replace(load_federation(config), shapes={"text": (2,), "audio": (3,)})
    with pytest.raises(UserError, match="text is 3 wide at text-0 but 2 wide in the evaluation"):
        load_sites(config, narrow)


# Scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [7, 256])
def test_scores_of_paired_models_are_those_of_evaluate(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HA-Fedformer can be scored both ways, and is trained with the mean that predicts."""
    monkeypatch.setattr("server.baselines.training.BATCH", batch)
    sites = sites_of(tmp_path, "centralised")
    baseline = centralised(sites)
    assert isinstance(baseline, FullModel) and baseline.fusion == "mean"
    baseline.train(1)
    # Some items that have audio lack text.
    items, (text, audio) = sites.data.test, sites.data.test.sequences.values()
    gone = (np.arange(len(items)) % 4 == 0) & (audio.lengths > 0)
    text = replace(text, lengths=np.where(gone, 0, text.lengths))
    items = replace(items, sequences={"text": text, "audio": audio})
    # Without calibration of what a modality says alone.
    unseen = {name: replace(own, count=0.0) for name, own in baseline.fitted.experts.items()}
    baseline.fitted = replace(baseline.fitted, experts=unseen)
    expected = baseline.scores(items)
    answers = predict_paired(baseline.training, sites.prior(sites.by_key), items)
    scores = {title: score(baseline.model.spec, *answer) for title, *answer in answers}
    assert list(scores) == list(expected)
    for title, metrics in scores.items():
        of_values = {name: expected[title][name] for name in metrics}  # not of deviations
        assert metrics == pytest.approx(of_values, rel=1e-4), title


@pytest.mark.parametrize("strategy", ["early_fusion", "cross_modal"])
def test_other_architectures_score_on_what_has_the_modality(strategy: str, tmp_path: Path) -> None:
    sites, before = sites_of(tmp_path, strategy), torch.get_rng_state()
    baseline = centralised(sites)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    assert isinstance(baseline, OtherArchitecture) and baseline.model_file() is None
    assert baseline.fusion == strategy and baseline.fusion_weights == {}
    assert baseline.parameters == sum(each.numel() for each in baseline.training.model.parameters())
    items = sites.data.test
    having = items.select(np.flatnonzero(items.sequences["audio"].lengths > 0))
    assert 0 < len(having) < len(items)
    assert baseline.scores(items)["audio"] == baseline.scores(having)["audio"]
