"""A bound leaves the run folder that a federation leaves, or none."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from common.config import Config, PrepareConfig, compose_config
from common.errors import UserError
from server.app import prepare
from server.baselines.baseline import run_baseline
from server.model_file import load_model
from server.preparation.preparation import prepare as prepare_shards
from server.run.console import RunConsole
from server.run.folder import CONFIG, CURVE, MODEL, ROUNDS, SUMMARY, TENSORBOARD
from server.run.run import Run

SMALL = (
    "dataset.max_seq_len=4",
    "model.width=4",
    "model.heads=2",
    "model.layers=1",
    "model.decoder_layers=1",
    "clients.default=2",
    "client.local_epochs=1",
    "client.device=cpu",
    "rounds=2",
)
SYNTHETIC = ("dataset.num_items=120", "dataset.num_speakers=24")
STRATEGIES = ("local", "pooled", "centralised", "early_fusion", "cross_modal")
#: Those that leave a model.
WHOLE = ("pooled", "centralised")
MODALITIES = ["language", "audio", "vision"]
#: What a federation writes a round and at the end; see `server.run.federation.Run`.
ROUND_KEYS = {
    *("round", "train_loss", "validation", "fusion_weights", "clients", "reused", "rejected"),
    *("decoder_weights", "trust", "refused", "privacy", "bytes_down", "bytes_up", "seconds"),
    *("client_losses", "posterior_widths", "phases"),
}
SUMMARY_KEYS = {
    *("test", "validation", "rounds", "seed", "seconds", "fusion", "fusion_weights", "items"),
    *("parameters", "cleaning", "diagnostics"),
}


def config_of(*overrides: str) -> Config:
    return compose_config("config", [*SMALL, *overrides])


def prepared(folder: Path, *overrides: str) -> tuple[Run, io.StringIO]:
    """Prepare a run whose console can be read."""
    run = prepare(config_of(*overrides), folder)
    shown = io.StringIO()
    console = Console(file=shown, width=200, highlight=False)
    run.console = RunConsole(run.config.rounds, run.data.task, console)
    return run, shown


@dataclass(frozen=True)
class Finished:
    run: Run
    shown: str
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Every strategy's run, each made once, when it is first asked for."""

    @cache
    def finish(strategy: str) -> Finished:
        folder = tmp_path_factory.mktemp(strategy) / "run"
        run, shown = prepared(folder, f"strategy={strategy}", *SYNTHETIC)
        summary = run_baseline(run)
        return Finished(run, shown.getvalue(), summary)

    return finish


def untimed(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / ROUNDS).read_text().splitlines()]
    assert all(record.pop("seconds") >= 0 for record in records)
    assert all(list(record.pop("phases")) == ["train", "evaluate"] for record in records)
    return records


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_run_folder_is_that_of_a_federation(
    strategy: str, finished: Callable[[str], Finished]
) -> None:
    done = finished(strategy)
    run, summary = done.run, done.summary
    folder = run.folder.path
    whole = strategy in WHOLE
    expected = {CONFIG, ROUNDS, SUMMARY, CURVE, TENSORBOARD, *([MODEL] if whole else [])}
    assert {path.name for path in folder.iterdir()} == expected
    assert summary.keys() == SUMMARY_KEYS and json.loads((folder / SUMMARY).read_text()) == summary
    assert (folder / CURVE).read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (folder / ROUNDS).read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    titles = MODALITIES if strategy in ("local", "pooled") else ["multimodal"]
    for line in lines:
        assert line.keys() == ROUND_KEYS
        assert list(line["train_loss"]) == titles
        assert list(line["validation"]) == ["multimodal", *MODALITIES]
        assert line["clients"] == dict.fromkeys(MODALITIES, 2)
        assert (line["reused"], line["rejected"], line["decoder_weights"]) == ([], [], {})
        assert line["posterior_widths"] == {}
        assert list(line["phases"]) == ["train", "evaluate"]
        assert sum(line["phases"].values()) == pytest.approx(line["seconds"], abs=0.1)
    assert summary["validation"] == lines[-1]["validation"]
    assert list(summary["test"]) == ["multimodal", *MODALITIES]
    assert summary["items"] == {
        "train": summary["items"]["train"],
        "validation": len(run.data.validation),
        "test": len(run.data.test),
    }
    assert 0 < summary["items"]["train"] <= 120 - len(run.data.validation) - len(run.data.test)
    if whole:
        model, _ = load_model(folder / MODEL)
        assert summary["parameters"] == sum(each.numel() for each in model.parameters())
    assert "round 1" in done.shown and f"run folder: {folder}" in done.shown


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_confusions_are_those_behind_the_scores(
    strategy: str, finished: Callable[[str], Finished]
) -> None:
    summary = finished(strategy).summary
    found = summary["diagnostics"]
    assert list(found) == ([] if strategy == "local" else list(summary["test"]))
    for title, parts in found.items():
        counts = np.array(parts["confusion"]["counts"])
        assert counts.sum() == summary["items"]["test"]
        assert np.trace(counts) / counts.sum() == pytest.approx(summary["test"][title]["acc7"])
        # Other architectures give no deviation.
        assert ("calibration" in parts) == (strategy in WHOLE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_clients_that_train_alone_have_losses(
    strategy: str, finished: Callable[[str], Finished]
) -> None:
    folder = finished(strategy).run.folder.path
    for line in untimed(folder):
        losses = line["client_losses"]
        if strategy != "local":
            assert losses == {}
            continue
        assert sorted(losses) == sorted(f"{name}-{part}" for name in MODALITIES for part in (0, 1))
        for name in MODALITIES:
            own = [losses[f"{name}-{part}"] for part in (0, 1)]
            assert min(own) <= line["train_loss"][name] <= max(own)


def test_train_items_are_as_many_whatever_the_bound(finished: Callable[[str], Finished]) -> None:
    assert len({finished(strategy).summary["items"]["train"] for strategy in STRATEGIES}) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_run_again_gives_the_same_rounds(
    strategy: str, finished: Callable[[str], Finished], tmp_path: Path
) -> None:
    first = finished(strategy)
    torch.rand(7)
    run, _ = prepared(tmp_path / "again", f"strategy={strategy}", *SYNTHETIC)
    again = run_baseline(run)
    assert untimed(run.folder.path) == untimed(first.run.folder.path)
    for key in ("test", "fusion_weights", "parameters"):
        assert again[key] == first.summary[key]
    if strategy in WHOLE:
        # Not the files' bytes: safetensors writes its metadata in any order.
        model, fusion = load_model(run.folder.path / MODEL)
        expected, expected_fusion = load_model(first.run.folder.path / MODEL)
        assert fusion == expected_fusion
        pairs = zip(model.state_dict().items(), expected.state_dict().values(), strict=True)
        assert all(torch.equal(array, other) for (_, array), other in pairs)


def shards(folder: Path) -> str:
    config = PrepareConfig(
        out=str(folder), format="synthetic", clients={"default": 2}, max_seq_len=4
    )
    prepare_shards(config, lambda *_: None, lambda _: {})
    return str(folder)


def test_shards_serve_where_items_need_one_modality_only(tmp_path: Path) -> None:
    path = shards(tmp_path / "shards")
    settings = ("dataset=shards", f"dataset.path={path}", "rounds=1", "client.batch_size=256")
    for strategy in ("local", "pooled"):
        run, _ = prepared(tmp_path / strategy, f"strategy={strategy}", *settings)
        assert run_baseline(run)["items"]["train"] > 0
    for strategy in ("centralised", "early_fusion", "cross_modal"):
        run, _ = prepared(tmp_path / strategy, f"strategy={strategy}", *settings)
        with pytest.raises(UserError, match=f"strategy={strategy} needs paired items"):
            run_baseline(run)
        assert not (tmp_path / strategy / ROUNDS).exists()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["strategy=pooled", "strategy.architecture=early_fusion"], "architecture=early_fusion"),
        (["strategy=local", "client.device=nowhere"], "client.device=nowhere"),
        (["strategy=pooled", "client.lr=1e30"], "not finite"),
    ],
)
def test_a_run_that_fails_before_its_first_round_gives_the_folder_up(
    overrides: list[str], reason: str, tmp_path: Path
) -> None:
    run, _ = prepared(tmp_path / "run", *SYNTHETIC, *overrides)
    with pytest.raises(UserError, match=reason):
        run_baseline(run)
    assert not (tmp_path / "run" / ROUNDS).exists()
    prepare(config_of(*SYNTHETIC, "strategy=local"), tmp_path / "run")


def test_a_run_that_fails_later_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = prepared(tmp_path / "run", "strategy=pooled", *SYNTHETIC)

    def refuse(*_: object) -> bytes:
        raise UserError("no picture")

    monkeypatch.setattr("server.run.run.learning_curve", refuse)
    with pytest.raises(UserError, match="no picture; a baseline cannot be resumed"):
        run_baseline(run)
    assert [record["round"] for record in untimed(tmp_path / "run")] == [1, 2]


def test_what_was_cleaned_and_warned_of_is_told(tmp_path: Path) -> None:
    run, shown = prepared(tmp_path / "run", "strategy=pooled", "rounds=1", *SYNTHETIC)
    object.__setattr__(run.data, "warnings", ("labels are few",))
    run.data.items.cleaning["items without label"] = 3  # type: ignore[attr-defined]
    run_baseline(run)
    assert "cleaned: 3 items without label" in shown.getvalue()
    assert "warning: labels are few" in shown.getvalue()
