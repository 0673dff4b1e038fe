"""A run delivers the state after its best round, or after its last, and says which."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny
from torch import nn

from common.data.dataset import MultimodalDataset
from server.app import prepare
from server.evaluate import Scores
from server.records import PhaseClock, RoundRecord
from server.run.folder import LAST, MODEL
from server.run.source import RoundSource


class Scripted(RoundSource):
    """Its state is the round, once as a weight and once as what is fitted; its losses are given."""

    examples = parameters = 1
    fusion = "none"
    prior = torch.tensor([0.0, 1.0])

    def __init__(self, losses: Sequence[float]) -> None:
        self.losses, self.layer = losses, nn.Linear(1, 1, bias=False)

    @property
    def modules(self) -> Sequence[nn.Module]:
        return [self.layer]

    def round(self, number: int, clock: PhaseClock) -> RoundRecord:
        with torch.no_grad():
            self.layer.weight.fill_(number)
        self.fitted = [number]
        return RoundRecord(number, {"multimodal": 1.0})

    def scores(self, items: MultimodalDataset) -> Scores:
        number = self.state()
        scores = {"mae": self.losses[number - 1], "corr": number / 10}
        return {"multimodal": scores, "audio": scores}

    def state(self) -> int:
        """Return the round, if both parts of the state are of the same."""
        (fitted,), weight = self.fitted, self.layer.weight.item()
        assert fitted == weight
        return int(fitted)

    def model_file(self) -> bytes:
        return f"round {self.state()}".encode()


def executed(folder: Path, losses: Sequence[float], *overrides: str) -> dict[str, Any]:
    run = prepare(tiny(f"rounds={len(losses)}", *overrides), folder)
    summary = run.execute(lambda _: Scripted(losses))
    assert json.loads((folder / "summary.json").read_text()) == summary
    return summary


@pytest.mark.parametrize(
    ("losses", "delivered"),
    [
        ([0.3, 0.1, 0.2], 2),
        ([0.3, 0.1, 0.1], 2),
        ([0.3, 0.2, 0.1], 3),
        ([0.1], 1),
        ([math.nan, 0.3, math.nan], 2),
        ([math.inf, math.inf], 1),
    ],
)
def test_the_best_round_is_the_model_and_the_last_is_beside_it(
    tmp_path: Path, losses: list[float], delivered: int, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = executed(tmp_path, losses)
    assert summary["delivered_round"] == delivered
    assert summary["rounds"] == len(losses)
    for side in ("test", "validation"):
        assert summary[side]["multimodal"]["corr"] == delivered / 10
    assert (tmp_path / MODEL).read_text() == f"round {delivered}"
    assert (tmp_path / LAST).read_text() == f"round {len(losses)}"
    whose = f"model of round {delivered} of {len(losses)} (least validation mae)"
    assert f" items, {whose}\n" in capsys.readouterr().out


def test_the_last_round_is_delivered_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = executed(tmp_path, [0.1, 0.3, 0.2], "checkpoint.deliver=last")
    assert summary["delivered_round"] == 3
    assert summary["test"]["multimodal"] == summary["validation"]["multimodal"]
    assert summary["validation"]["multimodal"] == {"mae": 0.2, "corr": 0.3}
    assert (tmp_path / MODEL).read_text() == "round 3"
    assert not (tmp_path / LAST).exists()
    assert "model of round 3 of 3 (the last)\n" in capsys.readouterr().out


@pytest.mark.parametrize(("patience", "rounds"), [("1", 3), ("2", 6), ("3", 7), ("null", 7)])
def test_a_run_ends_when_its_patience_does(
    tmp_path: Path, patience: str, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = [0.5, 0.4, 0.6, 0.3, 0.7, 0.8, 0.9]
    summary = executed(tmp_path, losses, f"patience={patience}")
    assert summary["rounds"] == len((tmp_path / "rounds.jsonl").read_text().splitlines()) == rounds
    assert summary["delivered_round"] == (2 if rounds == 3 else 4)
    said = f"ended after round {rounds} of 7: no better validation mae in {patience} rounds"
    assert (said in capsys.readouterr().out) is (rounds < 7)
