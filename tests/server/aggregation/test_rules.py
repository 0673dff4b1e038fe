"""A rule, and a structure, is one module with an entry in its registry: it is used by its name."""

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from memory_federation import Federation, config_with

from common.errors import UserError
from common.model.ha_fedformer import split_arrays
from common.structures import STRUCTURES, find_structure, fit_gaussian
from server.aggregation.rules import RULES, find_rule

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


@pytest.mark.usefixtures("plugins")
def test_a_rule_of_a_temporary_module_merges_by_its_name() -> None:
    results = []
    for merge in ("average", "doubled"):
        federation = Federation(config_with("strategy=fedavg", f"strategy.encoder.merge={merge}"))
        arrays, report = federation.round()
        assert report.rejected == ()
        results.append(split_arrays(arrays))
    average, doubled = results
    for name in federation.trained.encoders["audio"]:
        expected = 2 * average.encoders["audio"][name]
        torch.testing.assert_close(doubled.encoders["audio"][name], expected)
    assert torch.equal(doubled.decoder["head.bias"], average.decoder["head.bias"])


@pytest.mark.usefixtures("plugins")
def test_a_structure_of_a_temporary_module_fits_and_is_accepted_by_its_name() -> None:
    config = config_with("strategy=pbea", "strategy.encoder.structure=flat")
    encoder = config.strategy.encoder
    fitted = fit_gaussian(torch.randn(3, 2, 4), encoder)
    assert torch.equal(fitted.precision, torch.full((2, 4), 1 / encoder.shrinkage))
    _, report = Federation(config).round()
    assert report.rejected == () and len(report.posterior_widths) == 5


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    every = "average, fedatt, median, pbea, trimmed_mean"
    for find, words in (
        (lambda: find_rule("mode", "encoder"), f"encoder.merge=mode: expected one of {every}"),
        (lambda: find_rule("cmda", "encoder"), "encoder.merge=cmda: expected one of"),
        (lambda: find_structure("cube"), "structure=cube: expected one of diagonal, inputs, low_"),
        (lambda: Federation(config_with("strategy.encoder.merge=mode")), "encoder.merge=mode"),
    ):
        with pytest.raises(UserError, match=words):
            find()
