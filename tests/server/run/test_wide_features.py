"""6,373 features in one step: a federation by the default strategy, and what it says of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import SMALL, in_task

from common.config import Config, compose
from server.app import prepare
from server.runtimes.local import run_locally

WIDTH = 6_373
LEFT_OUT = (
    f"grip: averaged without precisions, which are for at most 256 inputs: embed.weight "
    f"({WIDTH:,} inputs)"
)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 40 items whose label shows in all features."""
    rng = np.random.default_rng(0)
    label = rng.normal(size=40)
    gait = label[:, None, None] + rng.normal(size=(40, 3, 5))
    grip = (label[:, None] + rng.normal(size=(40, WIDTH))).astype("f2")
    path = tmp_path_factory.mktemp("wide") / "wide.npz"
    np.savez(path, label=label, gait=gait, grip=grip, person=np.arange(40) // 2)
    return path


@pytest.fixture
def train(items: Path, tmp_path: Path) -> Iterator[Any]:
    """Return the rounds and the summary of a run."""

    def rounds_of(*overrides: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        data = ("dataset=file", f"dataset.path={items}", "dataset.modalities=[gait,grip]")
        config = compose(Config, [*SMALL, *data, "dataset.group=person", *overrides])
        folder = tmp_path / config.strategy.name
        run_locally(prepare(config, folder))
        lines = (folder / "rounds.jsonl").read_text().splitlines()
        return list(map(json.loads, lines)), json.loads((folder / "summary.json").read_text())

    with in_task():
        yield rounds_of


def test_the_default_strategy_trains_them_for_what_fedavg_takes(
    train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds, summary = train("rounds=3")
    shown = capsys.readouterr().out
    assert shown.splitlines().count(LEFT_OUT) == 1 and shown.count("without precisions") == 1
    assert [record["clients"] for record in rounds] == 3 * [{"gait": 2, "grip": 2}]
    assert [record["rejected"] for record in rounds] == 3 * [[]]
    assert summary["untrained"] == []
    plain, _ = train("rounds=1", "strategy=fedavg")
    assert "without precisions" not in capsys.readouterr().out
    for record in rounds:
        assert record["bytes_up"] <= 2 * plain[0]["bytes_up"]
    # Narrower layers have their precisions, and so has the first of the narrow modality.
    layers = rounds[0]["posterior_widths"]
    assert "encoder.embed" in layers["gait-0"]
    assert layers["grip-0"].keys() == layers["gait-0"].keys() - {"encoder.embed"}
