"""A baseline leaves the run folder that a federation leaves, or none."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import SMALL, SYNTHETIC, left_in, tiny, untimed

from common.config import Config, PrepareConfig, compose
from common.data.dataset import MultimodalDataset
from common.errors import UserError
from common.metrics import METRICS, compute_metrics
from common.task import Task
from server.app import prepare
from server.baselines import BASELINES, find_baseline, run_baseline
from server.baselines.baseline import Baseline, load_sites
from server.evaluate import Scores, evaluate
from server.model_file import load_model
from server.preparation.preparation import prepare as prepare_shards
from server.records import RoundRecord
from server.run.folder import CONFIG, LAST, MODEL, ROUNDS, SUMMARY
from server.run.run import Run

STRATEGIES = ("local", "closed_form", "pooled", "centralised", "early_fusion", "cross_modal")
#: Those that leave a model.
WHOLE = ("closed_form", "pooled", "centralised")
#: Those that need one modality of an item.
UNPAIRED = ("local", "closed_form", "pooled")
MODALITIES = ["language", "audio", "vision"]
CLIENTS = [f"{name}-{part}" for name in MODALITIES for part in (0, 1)]
SUMMARY_KEYS = {
    *(
        "test",
        "test_constant",
        "comparisons",
        "validation",
        "rounds",
        "delivered_round",
        "seed",
        "seconds",
        "fusion",
        "fusion_weights",
        "items",
    ),
    *("parameters", "untrained", "diverged", "cleaning", "diagnostics"),
}


def prepared(folder: Path, *overrides: str) -> Run:
    return prepare(compose(Config, [*SMALL, "dataset.max_seq_len=4", *overrides]), folder)


#: A strategy's run, and its summary.
Finish = Callable[[str], tuple[Run, dict[str, Any]]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finish:
    """Every strategy's run, each made once, when it is first asked for."""

    @cache
    def finish(strategy: str) -> tuple[Run, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(strategy) / "run"
        run = prepared(folder, f"strategy={strategy}", *SYNTHETIC)
        return run, run_baseline(run)

    return finish


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_run_folder_is_that_of_a_federation(strategy: str, finished: Finish) -> None:
    run, summary = finished(strategy)
    folder, whole = run.folder.path, strategy in WHOLE
    rounds = [json.loads(line) for line in (folder / ROUNDS).read_text().splitlines()]
    expected = {CONFIG, ROUNDS, SUMMARY, *([MODEL, LAST] if whole else [])}
    assert {path.name for path in folder.iterdir()} == expected
    assert summary.keys() == SUMMARY_KEYS and json.loads((folder / SUMMARY).read_text()) == summary
    assert [line["round"] for line in rounds] == ([1] if strategy == "closed_form" else [1, 2])
    assert summary["rounds"] == len(rounds)
    titles = MODALITIES if strategy in UNPAIRED else ["multimodal"]
    for line in rounds:
        assert list(line) == list(RoundRecord(1).to_json())
        assert list(line["train_loss"]) == titles
        assert list(line["validation"]) == ["multimodal", *MODALITIES]
        assert line["clients"] == dict.fromkeys(MODALITIES, 2)
        assert (line["reused"], line["rejected"], line["decoder_weights"]) == ([], [], {})
        assert list(line["phases"]) == ["train", "evaluate"]
        assert sum(line["phases"].values()) == pytest.approx(line["seconds"], abs=0.1)
        # Only clients that train alone have losses.
        assert sorted(line["client_losses"]) == (sorted(CLIENTS) if strategy == "local" else [])
    losses = [line["validation"]["multimodal"]["mae"] for line in rounds]
    assert summary["delivered_round"] == 1 + losses.index(min(losses))
    assert summary["validation"] == rounds[summary["delivered_round"] - 1]["validation"]
    assert list(summary["test"]) == ["multimodal", *MODALITIES]
    sides = {"validation": len(run.data.validation), "test": len(run.data.test)}
    train = summary["items"]["train"]
    assert summary["items"] == finished("local")[1]["items"] == {"train": train, **sides}
    assert 0 < train <= 120 - sum(sides.values())
    if whole:
        model, fusion = load_model(folder / MODEL)
        assert evaluate(model, fusion, run.data.test) == summary["test"]
        assert fusion.weights == summary["fusion_weights"]
        parts = model.parameters()
        if strategy == "closed_form":
            parts = [a for n, a in model.state_dict().items() if ".linear." in n]
        assert summary["parameters"] == sum(array.numel() for array in parts)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_confusions_are_those_behind_the_scores(strategy: str, finished: Finish) -> None:
    _, summary = finished(strategy)
    diagnosed = summary["diagnostics"]
    assert list(diagnosed) == ([] if strategy == "local" else list(summary["test"]))
    for title, parts in diagnosed.items():
        counts = np.array(parts["confusion"]["counts"])
        assert counts.sum() == summary["items"]["test"]
        assert np.trace(counts) / counts.sum() == pytest.approx(summary["test"][title]["acc7"])
        # Other architectures give no deviation.
        assert ("calibration" in parts) == (strategy in WHOLE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_run_again_is_the_same_and_shows_its_rounds(
    strategy: str, finished: Finish, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = finished(strategy)[0].folder.path
    torch.rand(7)
    run = prepared(tmp_path / "again", f"strategy={strategy}", *SYNTHETIC)
    run_baseline(run)
    shown = capsys.readouterr().out
    assert "round 1" in shown and f"run folder: {run.folder.path}" in shown
    assert untimed(run.folder.path) == untimed(first)
    if strategy in WHOLE:
        assert left_in(run.folder.path) == left_in(first)


def test_shards_serve_where_items_need_one_modality_only(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    config = PrepareConfig(
        out=str(shards), format="synthetic", clients={"default": 2}, max_seq_len=4
    )
    prepare_shards(config, lambda *_: None, lambda _: {})
    settings = ("dataset=shards", f"dataset.path={shards}", "rounds=1", "client.batch_size=256")
    for strategy in STRATEGIES:
        run = prepared(tmp_path / strategy, f"strategy={strategy}", *settings)
        if strategy in UNPAIRED:
            assert run_baseline(run)["items"]["train"] > 0
            continue
        with pytest.raises(UserError, match=f"strategy={strategy} needs paired items"):
            run_baseline(run)
        assert not (tmp_path / strategy / ROUNDS).exists()


def test_a_run_that_fails_later_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepared(tmp_path / "run", "strategy=pooled", *SYNTHETIC)
    told = {"warnings": ("labels are few",), "cleaning": {"items without label": 3}}
    run.data = replace(run.data, **told)  # type: ignore[arg-type]

    def refuse(*_: object) -> dict[str, float]:
        raise UserError("no scores")

    monkeypatch.setattr("server.run.run.constant_scores", refuse)
    with pytest.raises(UserError, match="no scores; a baseline cannot be resumed"):
        run_baseline(run)
    assert len((tmp_path / "run" / ROUNDS).read_text().splitlines()) == 2
    shown = capsys.readouterr().out
    assert "data: 3 items without label" in shown and "warning: labels are few" in shown


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "closed_form"])
def test_the_state_that_was_kept_comes_back_whole(strategy: str, tmp_path: Path) -> None:
    # Enough items that fusion gives every baseline a weight, which a round more changes.
    settings = ("client.lr=0.01", "dataset.num_items=1200", "dataset.num_speakers=60")
    run = prepared(tmp_path / "run", f"strategy={strategy}", *settings)
    source = find_baseline(run.config.strategy)(load_sites(run.config, run.data))

    def state() -> tuple[Any, ...]:
        items = run.data.test
        return source.scores(items), dict(source.fusion_weights), source.results(items)

    source.train(1)
    source.keep()
    kept = state()
    source.train(2)
    assert state() != kept
    source.restore()
    assert state() == kept
    if (content := source.model_file()) is not None:
        (tmp_path / "model").write_bytes(content)
        assert evaluate(*load_model(tmp_path / "model"), run.data.test) == kept[0]


def test_a_baseline_ends_with_its_patience_and_delivers_its_best_round(tmp_path: Path) -> None:
    settings = ("strategy=pooled", "client.lr=0.5", "rounds=9", "patience=1", *SYNTHETIC)
    run = prepared(tmp_path / "run", *settings)
    summary = run_baseline(run)
    best = summary["delivered_round"]
    assert summary["rounds"] == len(run.records) == best + 1 < 9
    for name, number in ((MODEL, best), (LAST, best + 1)):
        found = evaluate(*load_model(run.folder.path / name), run.data.validation)
        assert found == run.records[number - 1].validation


# The registry -----------------------------------------------------------------------------------


class MeanLabel(Baseline):
    """Predicts the mean label."""

    parameters = 1
    fusion = "none"
    modules = ()

    def train(self, number: int) -> dict[str, float]:
        labels = [site.labels[site.train] for site in self.sites.by_key.values()]
        self.fitted = float(np.concatenate(labels).mean())
        return {"multimodal": 1 / number}

    def scores(self, items: MultimodalDataset) -> Scores:
        guess = np.full(len(items), self.fitted + 1e-3 * np.arange(len(items)))
        scores = compute_metrics(Task.regression, items.labels, guess)
        return dict.fromkeys(["multimodal", *items.sequences], scores)


def test_a_baseline_and_a_metric_that_are_registered_are_run_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worst = lambda truth, predicted: np.abs(truth - predicted).max()  # noqa: E731
    monkeypatch.setitem(BASELINES, "mean_label", MeanLabel)
    monkeypatch.setitem(METRICS[Task.regression], "worst", worst)
    run = prepare(tiny("strategy=local", "strategy.setting=mean_label"), tmp_path)
    summary = run_baseline(run)
    scores = summary["test"]["multimodal"]
    assert list(scores)[-1] == "worst" and scores["worst"] >= scores["mae"] > 0
    assert [record.train_loss for record in run.records] == [{"multimodal": 1}, {"multimodal": 0.5}]
    assert "worst" in run.records[0].validation["audio"]
    assert (summary["parameters"], summary["fusion"]) == (1, "none")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["strategy.setting=alone"],
            "expected one of federated, centralised, closed_form, local, pooled",
        ),
        (
            ["strategy=centralised", "strategy.architecture=early"],
            "architecture=early: expected one of ha_fedformer, early_fusion, cross_modal",
        ),
        (["strategy=pooled", "strategy.architecture=early_fusion"], "architecture=early_fusion"),
        (["strategy=local", "client.device=nowhere"], "client.device=nowhere"),
        (["strategy=pooled", "client.lr=1e30"], "not finite"),
    ],
)
def test_a_baseline_that_fails_before_its_first_round_gives_the_folder_up(
    overrides: list[str], reason: str, tmp_path: Path
) -> None:
    run = prepare(tiny(*overrides), tmp_path)
    with pytest.raises(UserError, match=reason):
        run_baseline(run)
    assert not (tmp_path / ROUNDS).exists()
    prepare(tiny("strategy=local"), tmp_path)
