"""What form a precision has, by the shape of its tensor alone, and how many bytes that makes."""

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from common.config import ModelConfig, StrategyConfig
from common.model.ha_fedformer import HAFedformer, ModelSpec
from common.posterior import Form, precision_shape
from common.structures import (
    MOST_INPUTS,
    Structure,
    decoder_structure,
    encoder_structure,
    find_structure,
    posterior_form,
)
from common.task import Task

CONF = Path(__file__).parents[2] / "conf"


def shipped(kind: type, group: str, name: str) -> Any:
    """Read a choice of a group: far sooner than a whole configuration is composed."""
    chosen = OmegaConf.load(CONF / group / f"{name}.yaml")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), chosen))


ALL = [shipped(StrategyConfig, "strategy", path.stem) for path in CONF.glob("strategy/*.yaml")]
STRATEGIES = {each.name: each for each in ALL if each.setting == "federated"}
DEFAULT = STRATEGIES["hierarchical"]
VARIANTS = STRATEGIES | {
    f"hierarchical/{name}": replace(DEFAULT, encoder=replace(DEFAULT.encoder, structure=name))
    for name in ("diagonal", "row", "low_rank")
}


@pytest.mark.parametrize(
    ("structure", "vector", "narrow", "wide"),
    [
        ("diagonal", Form.diagonal, Form.diagonal, Form.diagonal),
        ("row", Form.diagonal, Form.row, Form.identity),
        ("inputs", Form.identity, Form.row, Form.identity),
        ("low_rank", Form.identity, Form.identity, Form.identity),
    ],
)
def test_a_map_of_too_many_inputs_has_no_precision_of_its_rows(
    structure: str, vector: Form, narrow: Form, wide: Form
) -> None:
    made = find_structure(structure)
    shapes = {
        vector: [(MOST_INPUTS,), (60_000,)],
        narrow: [(1, 1), (30, MOST_INPUTS), (60_000, 1), (2, MOST_INPUTS // 2, 2)],
        wide: [(1, MOST_INPUTS + 1), (30, 6_373, 1), (2, MOST_INPUTS // 2, 3)],
    }
    for form, of_form in shapes.items():
        for shape in of_form:
            expected = vector if len(shape) == 1 else form
            assert made.form(torch.empty(shape, device="meta")) is expected, shape
    left_out = [made.leaves_out(torch.empty(2, n)) for n in (MOST_INPUTS, MOST_INPUTS + 1)]
    assert left_out == [False, narrow is Form.row]


def numbers(module: nn.Module, structure: Structure | None) -> int:
    """Count the numbers of a posterior over a module; of symmetric matrices one triangle."""
    total = 0
    for mean in module.parameters():
        form = posterior_form(mean, structure)
        shape = precision_shape(mean, form)
        total += mean.numel()
        if form is Form.row:
            assert shape is not None
            total += shape[0] * (shape[0] + 1) // 2
        elif form is Form.diagonal:
            total += mean.numel()
    return total


@cache
def model_of(size: str, features: int) -> HAFedformer:
    """Build a model of one modality without its numbers."""
    sizes = shipped(ModelConfig, "model", size)
    spec = ModelSpec({"grip": (features,)}, 1, Task.regression, sizes)
    with torch.device("meta"):
        return HAFedformer(spec)


def ratio_to_fedavg(variant: str, size: str, features: int) -> float:
    """Compare the numbers of the largest update of a client with so many features."""
    model, strategy = model_of(size, features), VARIANTS[variant]
    encoder, plain = model.encoders["grip"], sum(each.numel() for each in model.parameters())
    sent = numbers(encoder, encoder_structure(strategy.encoder))
    return (sent + numbers(model.decoder, decoder_structure(strategy.decoder))) / plain


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_an_update_of_any_width_is_at_most_twice_that_of_fedavg(variant: str) -> None:
    for size, features in product(("paper", "base"), (1, MOST_INPUTS, MOST_INPUTS + 1, 6_373)):
        assert ratio_to_fedavg(variant, size, features) <= 2, (size, features)
    # The fewer layers, the more the precision of the first weighs; of wide features there is none.
    assert ratio_to_fedavg(variant, "small", MOST_INPUTS) <= 2.4
    assert ratio_to_fedavg(variant, "small", MOST_INPUTS + 1) <= 2
    assert ratio_to_fedavg(variant, "paper", 60_000) <= 2


def test_what_is_compared_are_all_strategies_and_their_precisions() -> None:
    assert len(STRATEGIES) == 13 and ratio_to_fedavg("fedavg", "paper", 6_373) == 1
    # The widest map inside of a shipped model has a precision.
    assert ratio_to_fedavg("hierarchical", "base", 1) > 1.6
