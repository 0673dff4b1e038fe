"""A baseline, and a metric, of a temporary module is used by its name."""

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from tiny_runs import tiny

from common.errors import UserError
from common.metrics import METRICS
from common.task import Task
from server.app import prepare
from server.baselines.baseline import BASELINES, run_baseline

PLUGIN = '''
"""The baseline that predicts the mean label, and the metric of the largest error."""

import numpy as np

from common.metrics import METRICS, compute_metrics
from common.task import Task
from server.baselines.baseline import BASELINES, Baseline


class MeanLabel(Baseline):
    parameters = 1
    fusion = "none"

    def train(self, number):
        labels = [site.labels[site.train] for site in self.sites.by_key.values()]
        self.mean = float(np.concatenate(labels).mean())
        return {"multimodal": 1 / number}

    def scores(self, items):
        guess = np.full(len(items), self.mean + 1e-3 * np.arange(len(items)))
        scores = compute_metrics(Task.regression, items.labels, guess)
        return dict.fromkeys(["multimodal", *items.sequences], scores)


BASELINES["mean_label"] = MeanLabel
METRICS[Task.regression]["worst"] = lambda truth, predicted: np.abs(truth - predicted).max()
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[None]:
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    spec = spec_from_file_location("temporary_baseline", path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))
    yield
    del BASELINES["mean_label"], METRICS[Task.regression]["worst"]


@pytest.mark.usefixtures("plugin")
def test_a_baseline_and_a_metric_of_a_temporary_module_are_run_by_name(tmp_path: Path) -> None:
    run = prepare(tiny("strategy=local", "strategy.setting=mean_label"), tmp_path / "run")
    summary = run_baseline(run)
    scores = summary["test"]["multimodal"]
    assert list(scores)[-1] == "worst" and scores["worst"] >= scores["mae"] > 0
    assert [record.train_loss for record in run.records] == [{"multimodal": 1}, {"multimodal": 0.5}]
    assert "worst" in run.records[0].validation["audio"]
    assert (summary["parameters"], summary["fusion"]) == (1, "none")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["strategy.setting=alone"], "expected one of federated, centralised, local, pooled"),
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
    run = prepare(tiny(*overrides), tmp_path / "run")
    with pytest.raises(UserError, match=reason):
        run_baseline(run)
    assert not (tmp_path / "run" / "rounds.jsonl").exists()
    prepare(tiny("strategy=local"), tmp_path / "run")
