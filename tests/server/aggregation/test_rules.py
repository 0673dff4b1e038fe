"""A rule, and a structure, is one module with an entry in its registry: it is used by its name."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from memory_federation import Federation, config_with
from tiny_runs import tiny

from common.config import Config
from common.errors import UserError
from common.model.ha_fedformer import split_arrays
from common.structures import STRUCTURES, find_structure
from server.aggregation.rules import RULES, find_rule
from server.app import prepare
from server.runtimes.local import run_locally

RULE = '''
"""The average of the arrays, doubled."""

from server.aggregation.average import WeightedSum
from server.aggregation.rules import RULES, Rule


def finish(total, setting):
    return {name: 2 * array for name, array in total.finish().items()}


RULES["doubled"] = Rule(WeightedSum, finish)
'''

STRUCTURE = '''
"""Every entry is certain to the same degree."""

import torch

from common.posterior import Form, Gaussian
from common.structures import STRUCTURES, Structure


class Flat(Structure):
    def form(self, mean):
        return Form.diagonal

    def fit(self, samples, config, start, moments):
        mean = samples.mean(dim=0)
        return Gaussian(mean, torch.full_like(mean, 1 / config.shrinkage), Form.diagonal)


STRUCTURES["flat"] = Flat()
'''


@pytest.fixture
def plugins(tmp_path: Path) -> Iterator[None]:
    for name, source in (("rule", RULE), ("structure", STRUCTURE)):
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = spec_from_file_location(f"temporary_{name}", path)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(module_from_spec(spec))
    yield
    del RULES["doubled"], STRUCTURES["flat"]


def with_merge(config: Config, **encoder: object) -> Config:
    strategy = config.strategy
    return replace(config, strategy=replace(strategy, encoder=replace(strategy.encoder, **encoder)))


@pytest.mark.usefixtures("plugins", "in_a_task")
def test_a_rule_of_a_temporary_module_merges_by_its_name() -> None:
    plain = config_with("strategy=fedavg")
    results = []
    for config in (plain, with_merge(plain, merge="doubled")):
        arrays, report = (federation := Federation(config)).round()
        assert report.rejected == ()
        results.append(split_arrays(arrays))
    average, doubled = results
    for name in federation.trained.encoders["audio"]:
        expected = 2 * average.encoders["audio"][name]
        torch.testing.assert_close(doubled.encoders["audio"][name], expected)
    assert torch.equal(doubled.decoder["head.bias"], average.decoder["head.bias"])


@pytest.mark.usefixtures("plugins", "in_a_task")
def test_a_run_trains_with_both_by_their_names(tmp_path: Path) -> None:
    run = prepare(tiny("strategy=pbea"), tmp_path / "run")
    run.config = with_merge(run.config, structure="flat")
    run_locally(run)
    (first, *_) = run.records
    assert first.rejected == []
    # Precisions of 1 / rho, so a standard deviation of its root.
    rho = run.config.strategy.encoder.shrinkage
    stds = {std for client in first.posterior_widths.values() for std in client.values()}
    assert stds == {float(f"{rho**0.5:.4g}")}


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    every = "average, fedatt, median, pbea, trimmed_mean"
    for find, words in (
        (lambda: find_rule("mode", "encoder"), f"encoder.merge=mode: expected one of {every}"),
        (lambda: find_rule("cmda", "encoder"), "encoder.merge=cmda: expected one of"),
        (lambda: find_structure("cube"), "structure=cube: expected one of diagonal, inputs, low_"),
        (lambda: Federation(with_merge(config_with(), merge="mode")), "encoder.merge=mode"),
    ):
        with pytest.raises(UserError, match=words):
            find()
