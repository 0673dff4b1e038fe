"""What every run begins with."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import in_task, tiny

from common.data.federation import load_federation
from common.data.source import Reading
from server.app import prepare
from server.run.folder import SUMMARY
from server.run.source import initial_model
from server.runtimes.local import run_locally


@pytest.mark.parametrize(
    ("validation", "test", "sentiment"),
    [
        ((-2.0, 0.5), (-0.5, 3.0), True),
        ((-0.5, 3.0), (-2.0, 0.5), True),
        ((-2.0, 0.5), (-0.5, 3.5), False),
        ((-3.5, 0.5), (-0.5, 3.0), False),
        ((1.0, 5.0), (1.0, 5.0), False),
    ],
)
def test_sentiment_is_decided_by_the_labels_of_validation_and_test_together(
    validation: tuple[float, float], test: tuple[float, float], sentiment: bool
) -> None:
    config = tiny()
    data = load_federation(config)

    def labelled(side: str, ends: tuple[float, float]) -> object:
        items = getattr(data, side)
        return replace(items, labels=np.linspace(*ends, len(items), dtype=np.float32))

    sides = {"validation": labelled("validation", validation), "test": labelled("test", test)}
    data = replace(data, **sides)  # type: ignore[arg-type]
    assert initial_model(config, data, {}).spec.sentiment is sentiment


def test_a_model_holds_how_its_data_were_read() -> None:
    config = tiny("dataset.max_seq_len=5")
    assert initial_model(config, load_federation(config), {}).spec.reading == Reading(5)


def test_a_rate_that_diverges_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("client.local_epochs=4",)
    for rate, far in (("3", True), ("0.001", False)):
        config, folder = tiny(*settings, f"client.lr={rate}"), tmp_path / rate
        with in_task():
            run_locally(prepare(config, folder))
        summary = json.loads((folder / SUMMARY).read_text())
        shown = capsys.readouterr().out
        assert bool(summary["diverged"]) is far
        assert ("warning: training diverged: the loss ends at " in shown) is far
        assert ("; lower client.lr=3\n" in shown) is far
